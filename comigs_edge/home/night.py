"""What the service did last, in sentences: written at the end of its run, shown by `status`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from comigs_edge import files


@dataclass(frozen=True, kw_only=True)
class Night:
    """One run of the service."""

    began: str  # local time
    read: str
    trained: str
    left: tuple[str, ...]  # what was not done, and why


def write_night(file: Path, night: Night) -> None:
    """Keeps it in place of the one before."""
    files.write_atomic(file, msgspec.json.encode(night))


def read_night(file: Path) -> Night | None:
    """The last one; None where there was none, or where it cannot be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Night)
    except (OSError, msgspec.DecodeError, UnicodeError):
        return None
