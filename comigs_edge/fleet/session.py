"""HTTP to a pinned coordinator that may answer anything: bounded in time, in memory, and in what it can make a device ask.

Every call has one deadline, which each byte that is sent or received is held against, the TLS handshake's and the headers'
too. Answers are neither redirected nor decompressed, and read up to `MAX_ANSWER`.
"""

from __future__ import annotations

import contextlib
import math
import ssl
import time
import warnings
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, SystemTimeWarning

from comigs_edge.errors import ComigsError

MAX_ANSWER = 4 << 20  # bytes: a thousand manifests are 1 MB
READ = 1 << 16  # bytes of a file that are taken at once
FAILURES = (requests.RequestException, HTTPError, HTTPException, OSError, ValueError)  # of a connection, or of what came through


class Deadline(ssl.SSLContext):
    """TLS whose every read and write ends at `at` (monotonic seconds)."""

    at = math.inf

    def left(self, timeout: float | None) -> float:
        """Seconds that the next bytes may take; raises `TimeoutError` where none are left."""
        seconds = self.at - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the call's time is over")
        return min(seconds, 90.0 if timeout is None else timeout)


class _Socket(ssl.SSLSocket):
    context: Deadline

    def do_handshake(self, block: bool = False) -> None:
        self.settimeout(self.context.left(self.gettimeout()))
        super().do_handshake(block)

    def send(self, data: Any, flags: int = 0) -> int:
        kept = self.gettimeout()
        self.settimeout(self.context.left(None))
        try:
            return super().send(data, flags)
        finally:
            self.settimeout(kept)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        kept = self.gettimeout()
        self.settimeout(self.context.left(kept))
        try:
            return super().recv_into(buffer, nbytes, flags)
        finally:
            self.settimeout(kept)


class _Pinned(HTTPAdapter):
    """Accepts the certificate with this SHA-256 and no other; dates and names do not matter."""

    def __init__(self, pin: bytes, context: Deadline) -> None:
        self._options: dict[str, Any] = {"assert_fingerprint": pin.hex(), "ssl_context": context}
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **(options | self._options))


class Session(requests.Session):
    """Sends each request once, to the pinned coordinator alone: no proxies, no redirects, no plain HTTP."""

    def __init__(self, pin: bytes) -> None:
        super().__init__()
        self.deadline = Deadline(ssl.PROTOCOL_TLS_CLIENT)
        self.deadline.check_hostname, self.deadline.verify_mode = False, ssl.CERT_NONE  # the pin is checked in their place
        self.deadline.sslsocket_class = _Socket
        self.adapters.clear()
        self.mount("https://", _Pinned(pin, self.deadline))

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """The answer's head; `requests` itself would read a redirection's body, however long."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SystemTimeWarning)  # of certificates' dates, which do not matter here
            return self.get_adapter(str(request.url)).send(request, stream=True, verify=False, timeout=options["timeout"])

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """What is done inside ends after so many seconds, or earlier where it is inside another."""
        kept = self.deadline.at
        self.deadline.at = min(kept, time.monotonic() + seconds)
        try:
            yield
        finally:
            self.deadline.at = kept


def read(answer: requests.Response) -> bytes:
    """The whole body; raises `ComigsError` for one that is encoded, or longer than `MAX_ANSWER`."""
    body = b"".join(pieces(answer, MAX_ANSWER))
    answer._content, answer._content_consumed = body, True  # type: ignore[attr-defined]
    return body


def pieces(answer: requests.Response, limit: int) -> Iterator[bytes]:
    """The body in pieces; raises `ComigsError` for more than `limit` bytes."""
    for name in ("Content-Encoding", "Transfer-Encoding"):
        if (value := answer.headers.get(name, "identity")) != "identity":
            answer.close()
            raise ComigsError(
                f"the coordinator's answer has the {name} {value[:40]!r}, which nobody asked for; tell whoever runs it"
            )
    size = 0
    with answer:
        while piece := answer.raw.read(min(READ, limit + 1 - size), decode_content=False):
            size += len(piece)
            if size > limit:
                raise ComigsError(f"the coordinator's answer has more than {limit:,} bytes; tell whoever runs it")
            yield piece
