"""The transport over an engine (NVIDIA FLARE): its tasks come and its answers go as two files, which FLARE's executor carries.

    home/flare/task     from the fleet: where it stands, and the newest generalist; replaced as a whole
    home/flare/answer   from this device, one for each task: an update, or what it lacks

Nobody waits for anybody: after its answer the device trains on, and looks for the next task after the next steps. Only what it
lacks to follow the fleet (older links, the whole generalist) is waited for.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.http import HOPELESS, REJECTED
from comigs_edge.fleet.standing import Sealed
from comigs_edge.fleet.transport import Leave, News, Offline
from comigs_edge.progress import SILENT, Progress
from coordinator.protocol import compress, keys, tasks, wire
from coordinator.protocol.messages import Commit, Manifest, Refusal, SignedManifest, State
from coordinator.protocol.tasks import Answer, Task

POLL = 0.2  # seconds


class Carried:
    """The two files, and the task that came last."""

    def __init__(self, folder: Path) -> None:
        files.make_folder(folder)
        self._task_file, self._answer_file = folder / "task", folder / "answer"
        self._task: Task | None = None
        self._data, self._answered = b"", ""

    def read(self) -> Task | None:
        """The newest task; one that is over may still be it."""
        try:
            self._task, self._data = tasks.unpack(self._task_file.read_bytes(), Task)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            raise ComigsError(
                f"{self._task_file} cannot be read ({error}); use the same version of comigs-edge on all machines"
            ) from error
        return self._task

    @property
    def payload(self) -> tuple[bytes, bytes]:
        """The bytes of the change and of the whole generalist in the task that was read last; one of them at most has any."""
        task = self._task
        return (b"", b"") if task is None else (self._data[: task.change], self._data[task.change :])

    @property
    def is_answered(self) -> bool:
        """Whether the task that was read last has its answer."""
        return self._task is None or self._task.word == self._answered

    def answer(self, data: bytes = b"", **said: Any) -> None:
        """Answers the task that was read last."""
        assert self._task is not None
        self._answered = self._task.word
        files.write_atomic(self._answer_file, tasks.head(Answer(word=self._answered, **said)) + data)

    def ask(self, patience: float, **said: Any) -> Task:
        """Answers with a question and waits for the task that it brings; raises `Offline`."""
        if not self.is_answered:
            self.answer(**said)
            end = time.monotonic() + patience
            while time.monotonic() < end:
                task = self.read()
                if task is not None and not self.is_answered:
                    if task.problem is not None:
                        raise ComigsError(task.problem.message)
                    return task
                time.sleep(POLL)
        raise Offline("the fleet has no new task yet; what was learned is brought with the next")

    def wait(self, patience: float) -> Task:
        """The next task that has no answer; raises `Offline`."""
        end = time.monotonic() + patience
        while True:
            task = self.read()
            if task is not None and not self.is_answered:
                return task
            if time.monotonic() >= end:
                raise Offline("FLARE has brought no task yet: no job of the fleet runs, or this site is not connected")
            time.sleep(POLL)


class CarriedTransport:
    """One device in its fleet, as a `Transport`; `patience` (seconds) is how long what it lacks is waited for."""

    def __init__(self, carried: Carried, device: str, patience: float) -> None:
        self._carried, self._device, self._patience = carried, device, patience
        self._refusal: Refusal | None = None
        self._has_brought = ""  # the word of the task that was answered with an update

    def exchange(self, update: Sealed | None, leaves: Leave, progress: Progress = SILENT) -> News:
        """Answers the task with the update; whether it counts is in the next one."""
        task = self._look()
        state = self._state(task)
        if update is None or state.has_contributed or update.id in state.counted:
            return News(state=state)
        rejected = None if task.mine is None else task.mine.rejected
        if rejected is not None and rejected.update_id == update.id and rejected.problem.error in REJECTED:
            reason = rejected.problem.message if rejected.problem.error in HOPELESS else ""
            return News(state=state, is_rejected=True, reason=reason)
        if self._carried.is_answered or state.settings.update_format == compress.MASKED:  # single updates are all that it carries
            return News(state=state)
        data = wire.encode(update.packed)
        leaves(len(data), state.settings)
        commit = Commit(
            sha256=hashlib.sha256(data).hexdigest(), update_id=update.id, trained_from=update.trained_from, tokens=update.tokens,
            expected_round=state.open_round, validation_loss=update.validation_loss,
        )  # fmt: skip
        self._carried.answer(data, device=self._device, commit=commit, refusal=self._refusal)
        progress(len(data), len(data))
        self._refusal, self._has_brought = None, task.word
        return News(state=self._state(task))

    def _look(self) -> Task:
        task = self._carried.read()
        if task is None:
            return self._carried.wait(0.0)
        if task.mine is None or task.mine.device != self._device:  # who it is, the fleet says
            task = self._ask()
        return task

    def _state(self, task: Task) -> State:
        """As of a coordinator that is asked again after every round's steps; a task with an answer is a round that waits."""
        assert task.mine is not None
        return msgspec.structs.replace(
            task.state, counted=task.mine.counted, counted_in=task.mine.counted_in, next_poll_seconds=0.0,
            has_contributed=task.mine.has_contributed or task.word == self._has_brought,
        )  # fmt: skip

    def _ask(self, **said: Any) -> Task:
        refusal, self._refusal = self._refusal, None
        return self._carried.ask(self._patience, device=self._device, refusal=refusal, **said)

    def manifests(self, after: int) -> list[SignedManifest]:
        """The chain behind this number, as far as the task shows it; more is asked for."""
        task = self._carried.read()
        if task is None or not task.links or not _number(task.links[0]) - 1 <= after < _number(task.links[-1]):
            task = self._ask(after=after)
        return [link for link in task.links if _number(link) > after]

    def download(self, manifest: Manifest, target: Path, progress: Progress = SILENT) -> None:
        """Writes the whole generalist, which is asked for unless the task has it."""
        if not self._carried.payload[1]:
            self._ask(whole=True)
        _write(self._carried.payload[1], manifest.sha256, f"generalist {manifest.round}", target)

    def download_change(self, manifest: Manifest, target: Path, progress: Progress = SILENT) -> None:
        """Writes the task's change."""
        _write(self._carried.payload[0], str(manifest.change_sha256), f"the change to generalist {manifest.round}", target)

    def refuse(self, refusal: Refusal) -> None:
        """Goes with the next answer."""
        self._refusal = refusal


def _number(link: SignedManifest) -> int:
    manifest: Manifest = msgspec.json.decode(keys.to_bytes(link.manifest), type=Manifest)
    return manifest.round


def _write(data: bytes, sha256: str, what: str, target: Path) -> None:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ComigsError(f"{what} did not come with the fleet's last task; the next one brings the newest")
    files.make_folder(target.parent)
    files.write_atomic(target, data)
