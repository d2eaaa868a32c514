"""Faults of the system for one thread of a running coordinator, by strace: a signal or an error at the Nth system call."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

# strace sees the threads that are there when it comes. Python begins one more, up to so many, where none of those waits for work:
# every attempt that misses a fault leaves a thread that the next one sees.
ATTEMPTS = min(32, (os.cpu_count() or 1) + 4) + 1

needs_strace = pytest.mark.skipif(shutil.which("strace") is None or os.geteuid() != 0, reason="wants strace and root")


@contextlib.contextmanager
def injected(process, thread, call, fault):
    """While this lasts, calls of the thread (`main`: ledger, network; `files`: payloads) meet `fault`, as in error=EIO:when=1."""
    tasks = sorted(int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir())
    tasks = [process.pid] if thread == "main" else [task for task in tasks if task != process.pid]
    strace = subprocess.Popen(
        ["strace", "-qq", "-o", "/dev/null", *[part for task in tasks for part in ("-p", str(task))],
         "-e", f"trace={call}", "-e", f"inject={call}:{fault}"], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not all(_is_traced(process.pid, task) for task in tasks):
            assert strace.poll() is None, "strace cannot attach"
            time.sleep(0.002)
        yield
    finally:
        strace.terminate()
        strace.wait()


def dies_at(process, thread, call, number, work, seconds):
    """Whether the process comes to this `number`th call of the thread while `work` is done, or `seconds` later: it dies there."""
    with injected(process, thread, call, f"signal=KILL:when={number}"):
        work()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    return process.poll() is not None


def _is_traced(process, task):
    status = Path(f"/proc/{process}/task/{task}/status").read_text()
    return "TracerPid:\t0\n" not in status
