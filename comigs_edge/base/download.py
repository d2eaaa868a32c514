"""Fetches a file over HTTP: resumes where it stopped, checks the disk first and the SHA-256 at the end.

While it is incomplete a file is called `.NAME.part`, with the server's ETag in `.NAME.etag`; the download resumes only if the
server still has the same one. The whole file is renamed into place after its check, so what has the right name is right.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import requests

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.progress import SILENT, Progress

ATTEMPTS = 5  # failed connections in a row
PIECE = 1 << 15  # bytes; one that a broken connection cuts is lost
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
SPARE = 50_000_000  # bytes that stay free on the disk


def fetch(url: str, target: Path, sha256: str | None = None, progress: Progress = SILENT) -> str:
    """Downloads `url` to `target` and returns its SHA-256; what is there already and has that SHA-256 is kept.

    Without `sha256` the one that the server names is checked (`X-Linked-Etag`, as Hugging Face does), if it names one.
    Raises `ComigsError` if the server refuses, the disk is too small, the network fails or the content is wrong.
    """
    if target.exists() and sha256 and files.sha256_file(target) == sha256:
        return sha256
    part = _Part(url, target, sha256)
    try:
        return _fetch(part, progress)
    except OSError as error:
        raise ComigsError(
            f"{target} cannot be written ({error.strerror or error}); make room, or name another place with COMIGS_EDGE_BASES"
        ) from error


def _fetch(part: _Part, progress: Progress) -> str:
    files.make_folder(part.target.parent)
    url, failures = part.url, 0
    while not part.is_complete:
        before = part.size
        try:
            part.receive(progress)
        except requests.RequestException as error:
            failures = 0 if part.size > before else failures + 1
            if failures >= ATTEMPTS:
                raise ComigsError(
                    f"{url} could not be fetched ({_reason(error)}); {part.size / 1e6:,.0f} MB are kept, the same command "
                    "resumes there"
                ) from error
            time.sleep(min(2**failures, 20) * _PAUSE)
        if part.kept is not None:
            return part.kept
    return part.finish()


_PAUSE = 0.5  # seconds; doubles with every failure in a row


class _Part:
    """The incomplete file."""

    def __init__(self, url: str, target: Path, sha256: str | None) -> None:
        self.url, self.target = url, target
        self.path, self.etag_file = (target.parent / f".{target.name}.{end}" for end in ("part", "etag"))
        self.total: int | None = None
        self.expected = sha256  # by the caller; goes before
        self.named: str | None = None  # by the server
        self.kept: str | None = None  # SHA-256 of the target where it is what the server has

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def is_complete(self) -> bool:
        return self.total is not None and self.size >= self.total

    def receive(self, progress: Progress) -> None:
        """One request, from where the file ends; nothing is received, and `kept` set, where the target is right already."""
        headers = {"Accept-Encoding": "identity"}
        if self.size and self.etag_file.exists():
            headers |= {"Range": f"bytes={self.size}-", "If-Range": self.etag_file.read_text()}
        with requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            self._understand(response)
            self._keep_target()
            if self.kept is not None:
                return
            with self.path.open("ab" if response.status_code == 206 else "wb") as file:
                for piece in response.iter_content(PIECE):
                    file.write(piece)
                    progress(file.tell(), self.total or file.tell())
                file.flush()
                os.fsync(file.fileno())
            if self.total is None:  # the server did not say how much it sends
                self.total = self.size

    def _keep_target(self) -> None:
        if self.target.exists() and self.target.stat().st_size == self.total:
            actual = files.sha256_file(self.target)
            self.kept = actual if self.wanted in (None, actual) else None

    @property
    def wanted(self) -> str | None:
        """The SHA-256 that the file must have, if one is known."""
        return self.expected or self.named

    def _understand(self, response: requests.Response) -> None:
        if response.status_code == 416:  # the file was complete already, or has become shorter: start over
            self.path.unlink(missing_ok=True)
            raise requests.RequestException("the server has a shorter file now")
        if response.status_code >= 500 or response.status_code in (408, 429):
            raise requests.RequestException(f"HTTP {response.status_code}")
        if response.status_code >= 400:
            raise ComigsError(
                f"{self.url} could not be fetched: the server answers {response.status_code} {response.reason}; check the "
                "name, or whether the model's licence has to be accepted first"
            )
        rest = response.headers.get("Content-Length")
        done = self.size if response.status_code == 206 else 0
        self.total = done + int(rest) if rest else None
        for each in [*response.history, response]:
            named = re.fullmatch(r'"?([0-9a-f]{64})"?', each.headers.get("X-Linked-Etag", ""))
            self.named = named[1] if named else self.named
        if etag := response.headers.get("ETag"):
            files.write_atomic(self.etag_file, etag.encode())
        needed = (self.total or 0) - done + SPARE
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise ComigsError(
                f"{self.target.name} needs {needed / 1e6:,.0f} MB more and {free / 1e6:,.0f} MB are free at {self.path.parent}; "
                "make room, or name another place with COMIGS_EDGE_BASES"
            )

    def finish(self) -> str:
        """Checks and renames the complete file; a wrong one is deleted."""
        actual, wanted = files.sha256_file(self.path), self.wanted
        if wanted is not None and actual != wanted:
            self.path.unlink()
            raise ComigsError(
                f"{self.url} brought a file with the SHA-256 {actual[:16]}... and not {wanted[:16]}...; it was deleted, run the "
                "same command again"
            )
        with self.path.open("rb") as file:
            if file.read(4) != b"GGUF":
                self.path.unlink()
                raise ComigsError(f"{self.url} is not a GGUF file; check the address, or whether the server wants a login")
        self.path.replace(self.target)
        self.etag_file.unlink(missing_ok=True)
        files.sync_folder(self.target.parent)
        return actual


def _reason(error: Exception) -> str:
    """The innermost cause, in a few words."""
    text = str(error.args[0] if error.args else error)
    return re.sub(r"^.*Errno -?\d+\] ", "", text).strip("'\")(")[:120]
