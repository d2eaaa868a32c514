"""The folder through which a site's executor and its home's training speak: one task and one answer at a time, as files."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from coordinator.protocol import tasks
from coordinator.protocol.tasks import Answer, Task

POLL = 0.2  # seconds


class Spool:
    """As the executor sees it; `comigs_edge/fleet/carried.py` is the other side."""

    def __init__(self, folder: Path) -> None:
        self._task, self._answer, self._word = folder / "task", folder / "answer", ""

    def put(self, task: bytes) -> None:
        """Hands a task over, in place of the one before."""
        self._word = tasks.unpack(task, Task)[0].word
        new = self._task.with_name(".task.new")
        new.write_bytes(task)
        os.replace(new, self._task)

    def take(self) -> bytes:
        """The answer to the task that was put, once; nothing if there is none. What was said to another one is forgotten."""
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            data = self._answer.read_bytes()
            self._answer.unlink()
            if tasks.unpack(data, Answer)[0].word == self._word:
                return data
        return b""

    def wait(self, seconds: float, is_over: Callable[[], bool]) -> bytes:
        """`take`, for so long."""
        end = time.monotonic() + seconds
        while not (answer := self.take()) and time.monotonic() < end and not is_over():
            time.sleep(POLL)
        return answer
