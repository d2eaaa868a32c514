"""A home in one file, to take it to another board: a tar archive, whose last member has the SHA-256 of every other.

What can be made again stays out: exported models, caches, logs, what names the present holder. The base is in it, since the
other board may have no network. Databases are copied as SQLite sees them. Imported, a home comes into its place as a whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.home import config_file
from comigs_edge.home.folder import Home
from comigs_edge.progress import Progress

FORMAT = 1
MANIFEST = ".comigs-edge-home.json"  # no file of a home: those with a dot are left out
KEY = "device.key"
_MADE_AGAIN = (
    "state/lock",
    "state/holder.*",
    "state/seals.json",
    "state/train.log",
    "state/pace.json",  # of this board
    "state/below-*.bin",
    "*-journal",
    "*-wal",
    "*-shm",
)
_PIECE = 1 << 20


def pack(home: Home, target: Path, with_key: bool, progress: Progress) -> int:
    """Writes the home to `target`, of the owner alone; returns its bytes. The caller holds the home's lock.

    Raises `ComigsError` where something is at `target` already, and where the disk is too small.
    """
    target = target.expanduser().absolute()
    if os.path.lexists(target):
        raise ComigsError(f"{target} is there already; name another file, or delete it")
    if target.is_relative_to(home.root):
        raise ComigsError(f"{target} lies in the home itself; name a file outside of {home.root}")
    paths = [path for path in _members(home) if with_key or path != home.root / KEY]
    total, sums = sum(path.stat().st_size for path in paths), {}
    with files.atomic_writer(target, total) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        done = 0
        for path in paths:
            name = path.relative_to(home.root).as_posix()
            with _readable(path) as source:
                sums[name] = _add(tar, name, source)
            done += path.stat().st_size
            progress(done, total)
        manifest = json.dumps({"format": FORMAT, "files": sums}).encode()
        _add(tar, MANIFEST, io.BytesIO(manifest))
    return target.stat().st_size


def unpack(home: Home, archive: Path, progress: Progress) -> bool:
    """Makes the home from an archive, and says whether the device's key was in it; raises `ComigsError` where one is there.

    Everything is written and checked beside the home's place; a kill leaves a folder there that the next import empties.
    """
    if os.path.lexists(home.root) and not (home.root.is_dir() and not any(home.root.iterdir())):
        raise ComigsError(f"there is a home at {home.root} already, which stays as it is; name another with COMIGS_EDGE_HOME")
    total = archive.stat().st_size
    files.make_folder(home.root.parent)
    staging = home.root.parent / f".{home.root.name}.import"
    with _alone_in(staging):
        files.check_room(staging, total)
        try:
            _extract(archive, staging, total, progress)
            config_file.read(staging / "config.toml")  # one of a newer version is refused
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        staging.replace(home.root)
        files.sync_folder(home.root.parent)
    return (home.root / KEY).exists()


def _members(home: Home) -> list[Path]:
    """The files that are taken along, in a fixed order."""
    found = []
    for path in sorted(home.root.rglob("*")):
        name = PurePosixPath(path.relative_to(home.root).as_posix())
        is_left = name.parts[0] == home.models.name or any(part.startswith(".") for part in name.parts)
        if path.is_file() and not is_left and not any(name.match(each) for each in _MADE_AGAIN):
            found.append(path)
    return found


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes; of a database a copy, without what another process is just writing."""
    if path.suffix != ".db":
        with path.open("rb") as file:
            yield file
        return
    # Beside it and named as temporary files are: what a kill leaves is deleted by the next command that locks the home.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as copy:
        try:
            with (
                contextlib.closing(sqlite3.connect(path, timeout=30)) as db,
                contextlib.closing(sqlite3.connect(copy.name)) as to,
            ):
                db.backup(to)
        except sqlite3.OperationalError as error:
            raise ComigsError(f"{path}: {error}; nothing was changed") from error
        except sqlite3.DatabaseError:  # damaged: as it is
            shutil.copyfile(path, copy.name)
        with open(copy.name, "rb") as file:
            yield file


def _add(tar: tarfile.TarFile, name: str, source: BinaryIO) -> str:
    """Appends a file; returns its SHA-256."""
    entry, reader = tarfile.TarInfo(name), _Summed(source)
    entry.size, entry.mode = source.seek(0, os.SEEK_END), 0o600
    source.seek(0)
    tar.addfile(entry, reader)
    return reader.digest.hexdigest()


class _Summed:
    """A file whose bytes are summed up as they are read."""

    def __init__(self, source: Any) -> None:
        self._source, self.digest = source, hashlib.sha256()

    def read(self, size: int = _PIECE) -> bytes:
        data: bytes = self._source.read(size)
        self.digest.update(data)
        return data


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """An empty folder for this process alone, whatever a killed one has left there."""
    files.make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ComigsError(f"another import writes in {folder}; wait for it to end") from None
        for path in folder.iterdir():
            files.remove(path)
        yield
    finally:
        os.close(descriptor)


def _extract(archive: Path, staging: Path, total: int, progress: Progress) -> None:
    """Writes the archive's files below `staging`; raises `ComigsError` unless all of them are there and sound."""
    sums: dict[str, str] = {}
    manifest: dict[str, Any] = {}
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                source = _Summed(tar.extractfile(entry)) if entry.isfile() else None
                if source is None or entry.name in sums or manifest:
                    raise ValueError(entry.name)
                if entry.name == MANIFEST:
                    manifest = json.loads(source.read(-1))
                    continue
                _write(staging, entry.name, source)
                sums[entry.name] = source.digest.hexdigest()
                progress(file.tell(), total)
    except (tarfile.TarError, EOFError, ValueError, KeyError) as error:
        raise _unsound(archive, error) from error
    if isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT:
        raise ComigsError(f"{archive} was made by a newer comigs-edge; upgrade comigs-edge")
    if manifest.get("files") != sums or "config.toml" not in sums:
        wrong = sorted(name for name, value in sums.items() if (manifest.get("files") or {}).get(name) != value)
        raise _unsound(archive, ", ".join(wrong[:3]) if manifest and wrong else "its end is missing")


def _write(staging: Path, name: str, source: _Summed) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or any(part.startswith(".") for part in path.parts) or not path.parts:
        raise ValueError(name)  # nothing outside of the folder
    target = staging / path
    files.make_folder(target.parent)
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while piece := source.read(_PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _unsound(archive: Path, what: object) -> ComigsError:
    return ComigsError(f"{archive} is no sound archive of a home ({what}); nothing was changed, export or copy it again")
