"""From the bytes of a request to a message, and from a message or a refusal to the bytes of an answer."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import math
import os
import re
import sqlite3
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from coordinator.ledger.payloads import DiskFailure
from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import SHA256_PATTERN, Message, Problem, decode, encode

BODY_SECONDS = 30.0  # for a body or a file to pass, and one more for every 16 kB
SLOWEST = 16_000  # bytes a second
EX_IOERR = 74
T = TypeVar("T", bound=Message)
log = logging.getLogger("comigs-coordinator")


async def read_body(request: web.Request, limit: int) -> bytes:
    """The body; raises `Refused` for one without a length, too long or too slow."""
    if "Transfer-Encoding" in request.headers:
        raise Refused(411, "length_required", "say the body's length (Content-Length); chunks are not accepted")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused(415, "encoded", "compressed bodies are not accepted")
    length = request.content_length or 0
    if length > limit:
        raise Refused(413, "too_large", f"the body has {length:,} bytes and may have {limit:,}")
    try:
        return await asyncio.wait_for(request.read(), BODY_SECONDS + length / SLOWEST)
    except asyncio.TimeoutError:
        raise Refused(408, "too_slow", "the body came too slowly; try again") from None
    except web.HTTPException:
        raise
    except (ValueError, web.RequestPayloadError) as error:
        raise Refused(400, "bad_body", "the body could not be read") from error


def parse(body: bytes, kind: type[T]) -> T:
    """The message in a body; raises `Refused` with the reason."""
    try:
        return decode(body, kind)
    except msgspec.DecodeError as error:
        raise Refused(422, "bad_message", f"the message cannot be used: {error}"[:300]) from error


def number(text: str) -> int:
    """A whole number of an address or a header; raises `Refused`."""
    if not re.fullmatch(r"-?[0-9]{1,15}", text):
        raise Refused(400, "bad_number", f"{text[:20]!r} is not a number")
    return int(text)


def check_range(request: web.Request, size: int) -> None:
    """Raises `Refused` for a range outside a file of so many bytes."""
    try:
        if (request.http_range.start or 0) >= size:
            raise ValueError("it starts after the end")
    except ValueError as error:
        sentence = f"the range does not fit {size:,} bytes; write bytes=FIRST- or bytes=FIRST-LAST"
        raise Refused(416, "bad_range", sentence) from error


def sha256_of(request: web.Request) -> str:
    """The SHA-256 that ends the address; raises `Refused`."""
    sha256 = request.match_info["sha256"]
    if not re.fullmatch(SHA256_PATTERN, sha256):
        raise Refused(400, "bad_sha256", "the address does not end with a SHA-256 in hexadecimal")
    return sha256


def answer(message: Message) -> web.Response:
    """A message as an answer."""
    return web.Response(body=encode(message), content_type="application/json")


def problem(error: Refused) -> web.Response:
    """A refusal as an answer."""
    headers = {} if error.retry_after is None else {"Retry-After": str(math.ceil(error.retry_after))}
    sentence = error.message.encode(errors="replace").decode()  # bytes of a header that are not UTF-8
    body = encode(Problem(error=error.code, message=sentence))
    return web.Response(status=error.status, body=body, content_type="application/json", headers=headers)


class SentFile(web.FileResponse):
    """A file that is sent once, by `prepare`, to somebody who takes it fast enough."""

    def __init__(self, path: Path, headers: dict[str, str]) -> None:
        super().__init__(path, headers=headers)
        self._seconds = BODY_SECONDS + path.stat().st_size / SLOWEST

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Sends it, only the first time: aiohttp prepares what a handler returns again."""
        if self.prepared:
            return None
        try:
            return await asyncio.wait_for(super().prepare(request), self._seconds)
        except asyncio.TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the file was taken too slowly") from None


def passing_trouble(error: BaseException) -> Refused | None:
    """The refusal for what may be over soon: a full disk, a ledger in other hands, no descriptor left; None for anything else."""
    text = str(error) if isinstance(error, sqlite3.OperationalError) else ""
    if "full" in text:
        return Refused(507, "disk_full", "the coordinator's disk is full; your update is kept on your device", 600)
    if "locked" in text:
        return Refused(503, "busy", "another program uses the coordinator's ledger; try again", 5)
    if _lacks_descriptors(error):
        return Refused(503, "busy", "the coordinator has too many files and connections open; try again", 5)
    return None


def _lacks_descriptors(error: BaseException) -> bool:
    for each in (error, error.__cause__):
        if isinstance(each, OSError) and each.errno in (errno.EMFILE, errno.ENFILE):
            return True
    if isinstance(error, sqlite3.OperationalError) and "unable to open" in str(error):
        try:  # SQLite does not say why
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return True
    return False


def disk_trouble(error: BaseException) -> Refused:
    """The refusal for passing trouble. For a disk that failed the process ends here, before anything is acknowledged; what is
    neither is raised again.
    """
    if (refused := passing_trouble(error)) is not None:
        return refused
    if not isinstance(error, (DiskFailure, sqlite3.OperationalError)):
        raise error
    log.critical("stopped, so that nothing is acknowledged that is not kept: %s", error)
    logging.shutdown()
    os._exit(EX_IOERR)


def is_local(request: web.Request) -> bool:
    """Whether somebody on this machine asks, and not somebody else through a program that passes connections on."""
    try:
        host = urlsplit(f"//{request.host}").hostname or ""
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False
    is_passed_on = any(name in request.headers for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"))
    return is_loopback and not is_passed_on and ipaddress.ip_address(request.remote or "::").is_loopback
