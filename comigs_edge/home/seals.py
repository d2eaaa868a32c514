"""What the large files of a home were found to hold, so that one is read whole only once something has touched it.

A file's SHA-256 is kept with what the system says of it. While that is the same, so is the content; otherwise it is read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.progress import SILENT, Progress, count_up

Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Seal:
    """What a file held when it was read whole, or written."""

    sha256: str
    stamp: Stamp


def stamp_of(path: Path) -> Stamp:
    """What the system says of a file, behind links: bytes, times in ns, inode, device.

    The time of its inode's last change is in it, since `cp -p` and archives give other files of that size the same time.
    """
    there = path.stat()
    return there.st_size, there.st_mtime_ns, there.st_ctime_ns, there.st_ino, there.st_dev


class Seals:
    """The seals of the files below `root`, and of some beside it, in the file at `path`.

    That one may be lost, and two writers may lose a seal: its file is then read whole once more.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self._root = path, root

    def holds(self, file: Path, sha256: str | None = None, progress: Progress = SILENT) -> bool:
        """Whether `file` has the content with which it was sealed, or the one with this SHA-256.

        Without both it is believed, as a file is that an earlier version wrote. What was found is sealed.
        """
        now, seal = stamp_of(file), self._read().get(self._name(file))
        wanted = sha256 or (seal.sha256 if seal else None)
        if seal == Seal(wanted or "", now):
            return True
        found = files.sha256_file(file, count_up(progress, now[0]))
        if wanted not in (None, found):
            return False
        self.seal(file, found, now)
        return True

    def seal(self, file: Path, sha256: str, stamp: Stamp | None = None) -> None:
        """Notes what `file` holds, as it is now or when it had this stamp; a home that cannot be written forgets it."""
        there = {name: seal for name, seal in self._read().items() if (self._root / name).exists()}
        there[self._name(file)] = Seal(sha256, stamp or stamp_of(file))
        with suppress(ComigsError, OSError):
            files.write_atomic(self.path, msgspec.json.encode(there))

    def _name(self, file: Path) -> str:
        """Homes are moved: the path inside of it, and the whole one of a file elsewhere."""
        return str(file.relative_to(self._root) if file.is_relative_to(self._root) else file.absolute())

    def _read(self) -> Mapping[str, Seal]:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, Seal])
        except (OSError, msgspec.DecodeError, UnicodeError):
            return {}
