"""From the bytes of a request to a message, and from a message or a refusal to the bytes of an answer."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sqlite3
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import Message, Problem, decode, encode

BODY_SECONDS = 30.0  # to send a body, and one more for every 16 kB
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
    """A file that is sent once, by `prepare`."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Sends it, only the first time: aiohttp prepares what a handler returns again."""
        return None if self.prepared else await super().prepare(request)


def disk_trouble(error: BaseException) -> Refused:
    """The refusal for a full disk; for anything else the process ends here, before anything is acknowledged."""
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        return Refused(507, "disk_full", "the coordinator's disk is full; your update is kept on your device", 600)
    log.critical("stopped, so that nothing is acknowledged that is not kept: %s", error)
    logging.shutdown()
    os._exit(EX_IOERR)
