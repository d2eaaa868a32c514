"""Writing files so that a kill, a full disk or a power cut leaves either the old content or the new.

A temporary file beside the target, fsync, rename, fsync of the folder. Everything is made for the owner alone
(folders 0700, files 0600).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from comigs_edge.errors import ComigsError, remedy

DEAD = 3600.0  # seconds without a change after which nobody writes a temporary file any more
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `tempfile` names it


def sha256_file(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """The file's SHA-256 in hexadecimal; `progress` receives the bytes of each piece read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_writer(path: Path, needed: int = 0) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends without an error, and vanishes otherwise.

    Raises `ComigsError` when the system refuses (disk full, no permission), before anything is written where there is no room
    for the bytes `needed`; `path` is then what it was.
    """
    temporary = None
    try:
        make_folder(path.parent)
        if needed:
            check_room(path.parent, needed)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)  # NamedTemporaryFile makes it 0600
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise ComigsError(
            f"{path} could not be written ({error.strerror or error}); what was there is unchanged, "
            f"{_free(path.parent)} are free; {remedy(error)}"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # of a disk that can no longer be written
                temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, or leaves what was there; raises `ComigsError` when the system refuses."""
    with atomic_writer(path) as file:
        file.write(data)


def write_at(file: BinaryIO, pieces: Sequence[tuple[int, bytes | memoryview]]) -> None:
    """Writes pieces of data at their positions of an open file, and waits until they are on the disk."""
    for position, data in pieces:
        file.seek(position)
        file.write(data)
    file.flush()
    os.fsync(file.fileno())


def check_room(folder: Path, needed: int) -> None:
    """Raises `ComigsError` unless so many bytes are free on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ComigsError(
            f"{folder} needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free there; make room, or name another disk"
        )


def make_folder(path: Path) -> None:
    """Makes the folder and its missing parents for the owner alone."""
    for folder in reversed([path, *path.parents]):
        if not folder.exists():
            folder.mkdir(mode=0o700)


def sync_folder(path: Path) -> None:
    """Makes a rename inside the folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, older_than_seconds: float = 0) -> None:
    """Deletes what a killed `atomic_writer` left behind; where no lock is held, only what is old enough to be dead."""
    for path in folder.glob(".*"):
        if time.time() - path.stat().st_mtime < older_than_seconds:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove(path: Path) -> None:
    """Deletes a file, or a folder with all that is in it."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_dead(root: Path) -> None:
    """Deletes what killed `atomic_writer`s left behind anywhere below, once it is old enough to be dead."""
    with contextlib.suppress(OSError):
        for path in root.rglob(".*"):
            if _TEMPORARY.fullmatch(path.name) and path.is_file() and time.time() - path.stat().st_mtime > DEAD:
                path.unlink(missing_ok=True)


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB"
