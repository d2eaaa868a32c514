"""The HTTP server of `comigs-edge serve`: OpenAI's routes before one engine, one answer at a time.

Without a key only this machine's own programs are answered: a page in a browser is refused by the `Origin` that it sends, also
where its name was made to lead here (DNS rebinding), by the `Host`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import signal
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from comigs_edge.errors import EXPECTED, sentence
from comigs_edge.inference.engine import Ended, Engine, Started
from comigs_edge.inference.generation import Stopped
from comigs_edge.inference.openai_api import Ask, Refused, Reply, read_chat, read_text

WAITING = 8  # requests, beside the one that is answered
BODY = 8 << 20  # bytes of a request
TOGETHER_SECONDS = 0.03  # pieces that come sooner are sent together: each holds llama.cpp up by 0.7 ms
NOTED = 200  # characters of what is refused, in the log
STOP_SECONDS = 5.0  # for answers to end when the server stops
LOCAL_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
Event: TypeAlias = Started | str | Ended
STOPPING = Refused(503, "the server is stopping", kind="server_error")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who is answered."""

    key: str | None = None  # None: everybody who names one of `hosts`
    hosts: frozenset[str] = LOCAL_NAMES
    origins: frozenset[str] = frozenset()  # of pages, as browsers send them

    def check(self, request: web.Request) -> None:
        """Raises `Refused`."""
        origin = request.headers.get("Origin")
        if origin is not None and origin not in self.origins:
            raise Refused(403, f"pages from {origin} may not use this server; allow them with: --origin {origin}")
        if self.key is None:
            if _name(request.host) not in self.hosts:
                raise Refused(403, f"this server is not {request.host}; without a key it answers only at localhost")
        elif request.method != "OPTIONS" and request.path != "/health":
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(
                given.strip().encode("utf-8", "surrogateescape"), self.key.encode()
            ):
                raise Refused(401, "the API key is missing or wrong", code="invalid_api_key")

    def allow(self, request: web.Request, response: web.StreamResponse) -> None:
        """Lets a page of the `origins` read the answer."""
        if (origin := request.headers.get("Origin")) in self.origins:
            response.headers.update({
                "Access-Control-Allow-Origin": origin, "Vary": "Origin", "Access-Control-Allow-Methods": "GET, POST",
                "Access-Control-Allow-Headers": "Authorization, Content-Type",
            })  # fmt: skip


class Server:
    """`names` lists the models that can be asked for, the default first; `note` gets a line for each answer."""

    def __init__(
        self, engine: Engine, names: Callable[[], list[str]], access: Access, *, waiting: int = WAITING,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self._engine, self._names, self._access, self._waiting, self._note = engine, names, access, waiting, note
        self._worker = ThreadPoolExecutor(max_workers=1)  # its queue is the requests that wait
        self._pending, self._started = 0, int(time.time())
        self._stopping = threading.Event()

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(middlewares=[self._guard], client_max_size=BODY)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name}", self._model)
        app.router.add_post("/v1/chat/completions", lambda request: self._complete(request, read_chat))
        app.router.add_post("/v1/completions", lambda request: self._complete(request, read_text))
        app.on_response_prepare.append(self._allow)
        return app

    async def run(self, sockets: list[socket.socket], ready: Callable[[], None]) -> None:
        """Answers on these sockets until SIGTERM or Ctrl-C; calls `ready` once it does."""
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        runner = web.AppRunner(
            self.application(), handler_cancellation=True, access_log=None, shutdown_timeout=STOP_SECONDS,
        )  # fmt: skip
        try:
            await runner.setup()
            for each in sockets:
                await web.SockSite(runner, each).start()
            ready()
            await stop.wait()
        finally:
            self._stopping.set()
            await runner.cleanup()
            await asyncio.to_thread(self._worker.shutdown)
            self._engine.close()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        try:
            self._access.check(request)
            if request.method == "OPTIONS":  # a browser asks what a page may do
                return web.Response(status=204)
            answer: web.StreamResponse = await handler(request)
        except Refused as refusal:
            return self._refuse(request, refusal)
        except web.HTTPException as error:
            text = f"{request.method} {request.path}: {error.reason}"
            return self._refuse(request, Refused(error.status, text, code="not_found" if error.status == 404 else None))
        except EXPECTED as error:
            return self._refuse(request, Refused(500, sentence(error), kind="server_error"))
        return answer

    def _refuse(self, request: web.Request, refusal: Refused) -> web.Response:
        reason = str(refusal)
        shown = f"{reason[:NOTED]}…" if len(reason) > NOTED else reason
        self._note(f"refused {request.method} {request.path[:NOTED]} from {request.remote}: {refusal.status}, {shown}")
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "5"}}.get(refusal.status)
        return web.json_response(refusal.body, status=refusal.status, headers=headers)

    async def _allow(self, request: web.Request, response: web.StreamResponse) -> None:
        self._access.allow(request, response)

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._described(name) for name in self._names()]})

    async def _model(self, request: web.Request) -> web.Response:
        return web.json_response(self._described(self._chosen(request.match_info["name"])))

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "comigs-edge"}

    def _chosen(self, name: str) -> str:
        names = self._names()
        if name and name not in names:
            raise Refused(
                404, f"The model {name!r} does not exist; there is {' and '.join(names)}.", param="model", code="model_not_found"
            )
        return name or names[0]

    async def _complete(self, request: web.Request, read: Callable[[bytes], Ask]) -> web.StreamResponse:
        ask = read(await request.read())
        name = self._chosen(ask.model)
        async with contextlib.aclosing(self._answer(name, ask)) as events:
            started = await anext(events)
            assert isinstance(started, Started)
            reply = Reply(ask, name, started.label, started.prompt_tokens)
            if ask.stream:
                return await self._stream(request, ask, reply, events)
            text = ""
            async for event in events:
                if isinstance(event, Ended):
                    return web.json_response(reply.whole(text, event.finish, event.tokens))
                text += str(event)
        raise STOPPING

    async def _stream(
        self, request: web.Request, ask: Ask, reply: Reply, events: AsyncGenerator[Event, None]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)

        async def send(data: dict[str, Any]) -> None:
            await response.write(b"data: " + msgspec.json.encode(data) + b"\n\n")

        try:
            if ask.is_chat:
                await send(reply.piece(None, is_first=True))
            async for event in events:
                if isinstance(event, Ended):
                    await send(reply.piece(None, event.finish))
                    if ask.include_usage:
                        await send(reply.usage(event.tokens))
                    await response.write(b"data: [DONE]\n\n")
                else:
                    await send(reply.piece(str(event)))
        except Refused as refusal:  # too late for a status
            await send(refusal.body)
        except ConnectionError:  # nobody reads it any more
            return response
        await response.write_eof()
        return response

    async def _answer(self, name: str, ask: Ask) -> AsyncGenerator[Event, None]:
        """The engine's events, once it is this request's turn; raises `Refused`. Whoever leaves it stops the answer."""
        if self._stopping.is_set():
            raise STOPPING
        if self._pending > self._waiting:
            raise Refused(
                429, f"{self._pending} requests are waiting already; try again later", kind="requests", code="rate_limit_exceeded"
            )
        loop, events, is_gone = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()
        self._pending += 1
        self._worker.submit(self._work, loop, events, name, ask, is_gone)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Ended):
                    return
        finally:
            is_gone.set()

    def _work(
        self, loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Any], name: str, ask: Ask, is_gone: threading.Event
    ) -> None:
        """Answers in the worker's thread."""
        start = time.perf_counter()
        started, text, sent = None, "", start - TOGETHER_SECONDS  # the first piece goes at once

        def put(event: object) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            for event in self._engine.answer(name, ask, lambda: not (is_gone.is_set() or self._stopping.is_set())):
                now = time.perf_counter()
                if isinstance(event, str):
                    text += event
                    if now - sent >= TOGETHER_SECONDS:
                        put(text)
                        text, sent = "", now
                    continue
                if isinstance(event, Started):
                    started = event
                elif started:
                    self._note(f"{started.label}: {started.prompt_tokens} + {event.tokens} tokens in {now - start:.1f} s")
                    put(text)
                put(event)
        except Refused as refusal:
            put(refusal)
        except Stopped:
            put(STOPPING)
        except Exception as error:  # whatever it is, the next request is answered
            self._note(f"error: {sentence(error)}")
            text = sentence(error) if isinstance(error, EXPECTED) else f"llama.cpp could not answer ({error})"
            put(Refused(500, text, kind="server_error"))
        finally:
            loop.call_soon_threadsafe(self._forget)

    def _forget(self) -> None:
        self._pending -= 1


def _name(host: str) -> str | None:
    """The name in a `Host` header, without its port."""
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{host}").hostname
    return None
