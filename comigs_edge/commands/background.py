"""`train --background`: the same command in a process of its own, which the end of a terminal or of an ssh login does not end."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

from comigs_edge import files
from comigs_edge.commands.console import next_command, notes, out, print_json
from comigs_edge.commands.settings import settings_of
from comigs_edge.errors import ComigsError
from comigs_edge.home import holder
from comigs_edge.home.folder import Home, corpus
from coordinator import systemd

BEGINS = 20.0  # seconds in which a training that cannot begin has usually said so
LOOKS = 0.2  # seconds between two looks at another process
UNIT = "comigs-edge-train-now"


def start(home: Home, words: list[str], as_json: bool) -> None:
    """Starts `comigs-edge train` with these words and returns once it holds the home; raises `ComigsError` if it ends before."""
    corpus(home, settings_of(home)).check_enough()
    if holder.present(home.holder_file) is not None:
        raise holder.refusal(home.holder_file)
    files.make_folder(home.state)
    if home.log_file.exists():
        home.log_file.replace(home.log_file.with_suffix(".log.1"))
    process = _launch(home, [sys.executable, "-m", "comigs_edge", "train", *words])
    with notes.status("starting"):
        process = _await_begin(home, process)
    result = {"process": process, "log": str(home.log_file), "next": "comigs-edge status --follow"}
    if as_json:
        print_json(result)
        return
    out.print(f"training in the background: process {process}, its words go to {home.log_file}", soft_wrap=True)
    out.print("to end it, with everything saved: comigs-edge train --stop")
    next_command(str(result["next"]))


def stop(home: Home, as_json: bool) -> None:
    """Ends the training that runs in this home after its present step, and waits until it has saved."""
    running = holder.training(home.holder_file)
    if running is None:
        raise ComigsError("no training runs in this home; see: comigs-edge status")
    os.kill(running.process, signal.SIGUSR1)
    os.kill(running.process, signal.SIGCONT)  # where Ctrl-Z has suspended it
    with notes.status(f"process {running.process} ends its step and saves"):
        while running.is_alive:
            time.sleep(LOOKS)
    if as_json:
        print_json({"stopped": running.process, "next": "comigs-edge status"})
        return
    out.print(f"process {running.process} has ended")
    next_command("comigs-edge status")


def _last_words(log_file: Path) -> str:
    """What a training in the background said last; nothing if there was none."""
    try:
        lines = log_file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line for line in lines if line.strip() and not line.startswith("next:")]
    return said[-1] if said else ""


def _launch(home: Home, command: list[str]) -> int:
    """The process: a transient unit of the user's systemd where that outlives the login, otherwise a session of its own."""
    environment = {**os.environ, "COMIGS_EDGE_HOME": str(home.root)}
    if systemd.lingers():
        passed = [
            f"--setenv={name}={value}" for name, value in environment.items() if name.startswith(("COMIGS_", "OMP_", "CUDA_"))
        ]
        places = [f"--property=Standard{name}=append:{home.log_file}" for name in ("Output", "Error")]
        name = f"{UNIT}-{hashlib.sha256(str(home.root).encode()).hexdigest()[:8]}"
        # systemd-run only waits here: the unit goes on without it.
        words = ["--quiet", "--collect", "--wait", f"--unit={name}", "--same-dir", *places, *passed, "--"]
        command = ["systemd-run", "--user", *words, *command]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(home.log_file), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawnp(command[0], command, environment, file_actions=actions, setsid=True)


def _await_begin(home: Home, process: int) -> int:
    """The process that trains, once it does or has outlasted the time in which it would have failed; raises `ComigsError`."""
    begin = time.monotonic()
    while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
        running = holder.present(home.holder_file)
        if running is not None and (running.progress is not None or time.monotonic() - begin > BEGINS):
            return running.process
        time.sleep(LOOKS)
    if ended[1]:
        words = _last_words(home.log_file).removeprefix("error: ")
        raise ComigsError(f"the training ended at once: {words or f'see {home.log_file}'}")
    return process
