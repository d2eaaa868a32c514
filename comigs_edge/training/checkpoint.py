"""The state of a training on disk: two generations, each one file whose name carries its SHA-256.

A file is written beside the others and renamed, so a kill or a power cut leaves the newest complete generation; one
whose bytes do not match its name is skipped with a warning.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from comigs_edge import files
from coordinator.protocol.wire import Arrays, pieces

GENERATIONS = 2
_NAME = re.compile(r"checkpoint-(\d{8})-([0-9a-f]{64})\.safetensors")
_PROGRESS = "progress"  # JSON, as bytes in a tensor, so that one hash covers everything
KNOWN, TRIED, BEGUN = "known", "tried", "begun"  # documents, of `known.py`: a few bytes for each

Progress = dict[str, Any]  # what JSON can hold


class Checkpoint(NamedTuple):
    """What was saved; arrays and progress are empty if no generation is sound."""

    arrays: Arrays
    progress: Progress
    warnings: list[str]  # one for each generation that was skipped

    @property
    def is_interrupted(self) -> bool:
        """Whether a training is to be resumed from here."""
        return bool(self.progress) and not self.progress["finished"]


def save(folder: Path, arrays: Arrays, progress: Progress) -> None:
    """Writes the next generation and drops all but the last two; raises `ComigsError` if the system refuses."""
    tensors: Arrays = {**arrays, _PROGRESS: np.frombuffer(json.dumps(progress).encode(), np.uint8)}
    data, digest = pieces(tensors), hashlib.sha256()
    for piece in data:
        digest.update(piece)
    generations = _generations(folder)
    number = generations[-1][0] + 1 if generations else 1
    files.remove_temporaries(folder)
    name = f"checkpoint-{number:08d}-{digest.hexdigest()}.safetensors"
    with files.atomic_writer(folder / name) as file:
        file.writelines(data)
    for *_, path in _generations(folder)[:-GENERATIONS]:
        path.unlink()


def load(folder: Path, with_arrays: bool = True) -> Checkpoint | None:
    """The newest sound generation; None if nothing was saved. Without most arrays it takes a third of the time, and no memory."""
    warnings: list[str] = []
    for _, sha256, path in reversed(_generations(folder)):
        if files.sha256_file(path) == sha256:
            with safe_open(path, "numpy") as file:
                names = file.keys() if with_arrays else {_PROGRESS, KNOWN, TRIED, BEGUN}.intersection(file.keys())
                tensors: Arrays = {name: file.get_tensor(name) for name in names}
            progress = json.loads(tensors.pop(_PROGRESS).tobytes())
            return Checkpoint(tensors, progress, warnings)
        warnings.append(f"the checkpoint {path.name[:19]} is damaged and was passed over")
    return Checkpoint({}, {}, warnings) if warnings else None


class Latest:
    """What `load` finds, read when it is first asked for, and again only where there are other generations by then."""

    def __init__(self, folder: Path, with_arrays: bool = False) -> None:
        self._folder, self._with_arrays = folder, with_arrays
        self._read: list[tuple[int, str, Path]] = []  # the generations that were there
        self._state: Checkpoint | None = None

    @property
    def state(self) -> Checkpoint | None:
        """The newest sound generation; None if nothing was saved."""
        present = _generations(self._folder)
        if present != self._read:
            self._read, self._state = present, load(self._folder, self._with_arrays)
        return self._state

    @property
    def interrupted(self) -> Checkpoint | None:
        """That of a training that has not finished; None where there is no such training."""
        state = self.state
        return state if state is not None and state.is_interrupted else None


def interrupted(folder: Path) -> Checkpoint | None:
    """The newest sound generation of a training that has not finished; None where there is no such training."""
    return Latest(folder, with_arrays=True).interrupted


def clear(folder: Path) -> None:
    """Deletes all generations."""
    for *_, path in _generations(folder):
        path.unlink()


def _generations(folder: Path) -> list[tuple[int, str, Path]]:
    """Number, SHA-256 and file of each, the oldest first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted((int(match[1]), match[2], path) for match, path in matches if match)
