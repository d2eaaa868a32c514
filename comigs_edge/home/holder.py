"""Who works in a home now and how far it is: written by the holder of its lock, read by `status` and by who finds it locked."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from comigs_edge import files
from comigs_edge.errors import ComigsError


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training is."""

    phase: str  # expert, router, closing, local, paused, or what is done before the first step
    expert_steps: int
    steps: int
    loss: float | None = None  # of the last step, and of the last validation: nats a token
    validation_loss: float | None = None
    tokens_per_second: float = 0.0
    seconds_left: float | None = None  # None until it is known


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds the home's lock."""

    process: int
    command: str
    since: str  # local time
    started: float  # the process, seconds since 1970: another one may get its number
    progress: Progress | None = None

    @property
    def is_alive(self) -> bool:
        """Whether that process still runs."""
        import psutil  # 27 ms, which commands that lock nothing do without

        try:
            process = psutil.Process(self.process)
            return abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    @property
    def is_suspended(self) -> bool:
        """Whether it waits to be continued, as after Ctrl-Z."""
        import psutil

        try:
            return psutil.Process(self.process).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False


def hold(file: Path, command: str) -> None:
    """Names this process as the holder."""
    import psutil

    now = time.strftime("%Y-%m-%d %H:%M")
    holder = Holder(process=os.getpid(), command=command, since=now, started=psutil.Process().create_time())
    files.write_atomic(file, msgspec.json.encode(holder))


def tell(file: Path, progress: Progress) -> None:
    """Writes how far the holder is. What is only said never ends a training, and does not wait for the disk."""
    try:
        holder = _read(file)
        if holder is not None:
            temporary = file.with_suffix(".new")
            temporary.write_bytes(msgspec.json.encode(replace(holder, progress=progress)))
            temporary.replace(file)
    except OSError:
        return


def present(file: Path) -> Holder | None:
    """The holder, if one is at work now."""
    holder = _read(file)
    return holder if holder is not None and holder.is_alive else None


def training(file: Path) -> Holder | None:
    """The training that runs now, if one does."""
    holder = present(file)
    return holder if holder is not None and holder.command == "train" else None


def refusal(file: Path) -> ComigsError:
    """Why the home cannot be had: who has it."""
    who = present(file)
    if who is None:
        return ComigsError("another comigs-edge command runs in this home; wait for it to end")
    stop = "comigs-edge train --stop" if who.command == "train" else f"kill {who.process}"
    return ComigsError(
        f"`comigs-edge {who.command}` already runs in this home (process {who.process}, since {who.since}); "
        f"wait for it, or stop it with: {stop}"
    )


def _read(file: Path) -> Holder | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError, UnicodeError):
        return None
