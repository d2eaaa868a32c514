"""Files of the coordinator: payloads by the SHA-256 of their content, unfinished uploads, and their deletion.

    payloads/SHA256     complete, durable, never changed
    uploads/DEVICE-SHA  what a device has brought so far; its size is where the device continues

A payload is written or collected beside its place, fsynced, renamed, and the folder fsynced. If the disk fails to sync, the
process ends (`DiskFailure`): pages that could not be written may be taken for clean on a second try.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from coordinator.protocol.errors import Refused

SPARE_BYTES = 64 * 10**6  # of the disk that stay free
SPARE_SHARE = 0.05  # ... or this share, if it is less
UPLOADS = 4  # of one device that may be incomplete


class DiskFailure(BaseException):
    """The disk did not keep what it was given; nothing may be acknowledged any more."""


class Payloads:
    """The folders of payloads and of uploads."""

    def __init__(self, root: Path) -> None:
        self.folder, self.uploads = root / "payloads", root / "uploads"
        for folder in (self.folder, self.uploads):
            folder.mkdir(mode=0o700, exist_ok=True)
        for path in self.uploads.iterdir():
            if not re.fullmatch("[0-9a-f]{32}-[0-9a-f]{64}", path.name):  # left by a crash during `write` or a backup
                _remove(path)
        self._held: Counter[str] = Counter()  # in use, perhaps not in the ledger yet: not collected
        self._made: str | None = None  # the newest payload of `write`: not collected

    def path(self, sha256: str) -> Path:
        """Where a payload is."""
        return self.folder / sha256

    # Uploads ------------------------------------------------------------------------------------------------------

    def offset(self, device: str, sha256: str) -> int:
        """Bytes of the payload that are here."""
        for path in (self.path(sha256), self._part(device, sha256)):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0

    def append(self, device: str, sha256: str, offset: int, data: bytes) -> int:
        """Adds the next piece; returns the new offset. Raises `Refused` if it is not the next one, or the disk is full."""
        here = self.offset(device, sha256)
        if offset != here:
            raise Refused(409, "wrong_offset", f"the upload has {here:,} bytes and not {offset:,}; continue there")
        if self.path(sha256).exists():
            raise Refused(409, "wrong_offset", f"the upload is complete, with {here:,} bytes; commit it")
        self.check_space(len(data))
        if not here:
            self._drop_oldest(device)
        # No buffer: closing writes nothing more.
        with _writing(), self._part(device, sha256).open("ab", buffering=0) as file:
            _write_all(file, data, here)
        return here + len(data)

    def finish(self, device: str, sha256: str, size: int) -> Path:
        """The complete, checked, durable upload, not yet in its place (see `keep`); raises `Refused`."""
        part = self._part(device, sha256)
        if self.path(sha256).exists():
            return self.path(sha256)
        here = self.offset(device, sha256)
        if here != size:
            raise Refused(409, "incomplete", f"{here:,} of {size:,} bytes are here; upload the rest first")
        with _writing(part):
            _sync_and_drop(part)  # read back from the disk: what that has not kept is not acknowledged
            if _sha256(part) != sha256:
                part.unlink()
                raise Refused(422, "wrong_digest", "what arrived does not have the SHA-256 that was announced; upload it again")
        return part

    def keep(self, part: Path, sha256: str) -> None:
        """Puts a finished upload into its place, durably."""
        with _writing():
            if part != self.path(sha256):
                part.replace(self.path(sha256))
            sync_folder(self.folder)  # also if it is there: its sync may still be missing

    @contextlib.contextmanager
    def hold(self, sha256: str) -> Iterator[None]:
        """Keeps the payload from `collect`, in whose thread this must run."""
        self._held[sha256] += 1
        try:
            yield
        finally:
            self._held[sha256] -= 1
            self._held += Counter()  # forgets the zeros

    def forget(self, device: str, sha256: str) -> None:
        """Drops an upload."""
        self._part(device, sha256).unlink(missing_ok=True)

    def _drop_oldest(self, device: str) -> None:
        """Makes room for a new upload among the `UPLOADS` of a device: unfinished ones cannot fill the disk."""
        parts = sorted(self.uploads.glob(f"{device}-*"), key=_modified_at, reverse=True)
        for path in parts[UPLOADS - 1 :]:
            path.unlink(missing_ok=True)

    def _part(self, device: str, sha256: str) -> Path:
        return self.uploads / f"{device}-{sha256}"

    # Payloads -----------------------------------------------------------------------------------------------------

    def write(self, pieces: Iterable[bytes | memoryview], size: int) -> str:
        """Keeps a payload that the coordinator made; returns its SHA-256. `collect` leaves it until the next one is made."""
        self.check_space(size)
        temporary, digest = self.uploads / "generalist", hashlib.sha256()
        with _writing(temporary), temporary.open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            _sync_and_drop(temporary)
            if _sha256(temporary) != digest.hexdigest():
                raise DiskFailure("the disk does not keep what it is given")
        self._made = digest.hexdigest()
        self.keep(temporary, self._made)
        return self._made

    def is_sound(self, sha256: str | None) -> bool:
        """Whether a payload is here, readable, and has this SHA-256."""
        try:
            return sha256 is not None and _sha256(self.path(sha256)) == sha256
        except OSError:  # it is gone, or the disk cannot read it
            return False

    def unsound(self, wanted: set[str]) -> set[str]:
        """Those of the payloads that are not sound; each is read once."""
        return {sha256 for sha256 in wanted if not self.is_sound(sha256)}

    def has(self, sha256: str | None, size: int) -> bool:
        """Whether a payload of this size is here; its bytes are not read."""
        try:
            return sha256 is not None and self.path(sha256).stat().st_size == size
        except OSError:
            return False

    def drop(self, sha256: str) -> None:
        """Deletes a payload that is damaged: nobody gets it any more, and it can come again."""
        with contextlib.suppress(OSError):
            self.path(sha256).unlink()

    def collect(self, wanted: set[str], now: float, upload_seconds: float = 7 * 86400) -> int:
        """Deletes payloads that are not wanted and uploads that were abandoned; returns the number of both."""
        wanted = wanted | set(self._held) | {str(self._made)}
        garbage = [path for path in self.folder.iterdir() if path.name not in wanted]
        garbage += [path for path in self.uploads.glob("*-*") if now - _modified_at(path) > upload_seconds]
        for path in garbage:
            _remove(path)
        return len(garbage)

    def disk(self) -> tuple[int, int]:
        """Free and all bytes of the disk that the payloads are on; where their folder is gone, of the coordinator's."""
        usage = shutil.disk_usage(self.folder if self.folder.exists() else self.folder.parent)
        return usage.free, usage.total

    def check_space(self, size: int) -> None:
        """Raises `Refused` (507) if the disk has no room for `size` bytes."""
        free, total = self.disk()
        if free - size < min(SPARE_BYTES, SPARE_SHARE * total):
            sentence = f"the coordinator's disk is full ({free / 1e6:,.0f} MB free); your update is kept on your device"
            raise Refused(507, "disk_full", sentence, retry_after=600)


def sync_folder(path: Path) -> None:
    """Makes renames inside the folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(temporary: Path | None = None) -> Iterator[None]:
    """Raises `Refused` (507) if the disk becomes full, `DiskFailure` if it fails; `temporary` is deleted then."""
    try:
        yield
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            sentence = "the coordinator's disk is full; your update is kept on your device"
            raise Refused(507, "disk_full", sentence, 600) from error
        raise DiskFailure(f"the disk refused to write: {error}") from error


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFailure(f"the disk refused to sync: {error}") from error


def _sync_and_drop(path: Path) -> None:
    """Waits until the file is on the disk, and makes the next reader read it from there."""
    with path.open("rb") as file:
        _sync(file.fileno())
        with contextlib.suppress(OSError):  # a file system that has no use for it
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write_all(file: io.RawIOBase, data: bytes, end: int) -> None:
    """All of `data` behind the file's present `end`, or nothing."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) or 0 :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def _remove(path: Path) -> None:
    """A file, or the folder of a backup."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _modified_at(path: Path) -> float:
    """Modification time; infinite for a file that another thread has just renamed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
