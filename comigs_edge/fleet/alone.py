"""What a device learns while it is in no fleet; it goes on top of what it had learned with its fleet when it is back.

Adapters and checkpoints may be older than the books: they hold the best state of a training and not its last one. So nobody could
tell from the books what was learned alone. A training alone notes the generalist that it begins with, under the mark of that.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from comigs_edge import files
from comigs_edge.arrays import subtract
from comigs_edge.errors import EXPECTED
from comigs_edge.fleet.records import read_record, write_record
from comigs_edge.fleet.standing import Standing
from comigs_edge.home.marks import Mark
from coordinator.protocol.wire import Arrays


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Where the trainings alone began: a name of its own, and the tokens of the mark then."""

    id: str
    tokens: int


class Alone:
    """The notes, in `alone/` of a home; one for each mark."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, generalist: Arrays, mark: Mark) -> None:
        """Notes where a training begins, unless one before it has begun there."""
        if not self.has_begun(mark):
            files.make_folder(self._folder)
            write_record(self._path(mark), generalist, {"id": secrets.token_hex(8), "tokens": mark.tokens or 0})

    def has_begun(self, mark: Mark) -> bool:
        """Whether there was a training alone."""
        return self._path(mark).exists()

    def learned(self, standing: Standing, generalist: Arrays, mark: Mark) -> Arrays | None:
        """What was learned, entered in the standing with its tokens; None where nothing was, or where it is in already."""
        try:
            arrays, facts = read_record(self._path(mark), Begin)
            begin = Begin(**facts)
        except (*EXPECTED, TypeError):
            return None
        if begin.id == standing.alone:
            return None
        standing.alone, standing.unsent_tokens = begin.id, standing.unsent_tokens + max(0, (mark.tokens or 0) - begin.tokens)
        return subtract(generalist, arrays)

    def forget(self, mark: Mark) -> None:
        """The books hold it now; where it stays, its name is in the standing."""
        with suppress(OSError):
            self._path(mark).unlink()

    def _path(self, mark: Mark) -> Path:
        return self._folder / f"{hashlib.sha256((mark.word or '').encode()).hexdigest()[:16]}.safetensors"
