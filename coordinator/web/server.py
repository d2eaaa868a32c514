"""The HTTP shell: bytes in, one call on `Fleet`, bytes out.

Covered:     who may ask (signatures, replays), lengths before anything is read, deadlines for slow clients, rates, one sentence
             for every refusal, and an end of the process where the disk fails.
Not covered: differential privacy; and unless the fleet is private, whoever runs the coordinator can read each device's update.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from coordinator.ledger.fleet import Fleet
from coordinator.ledger.members import Device
from coordinator.ledger.payloads import DiskFailure
from coordinator.ledger.private import PrivateRounds
from coordinator.protocol import keys, signatures
from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import Commit, Hello, Join, Refusal, State
from coordinator.web import openapi, page
from coordinator.web.answers import (
    SentFile,
    answer,
    check_range,
    disk_trouble,
    is_local,
    number,
    parse,
    passing_trouble,
    problem,
    read_body,
    sha256_of,
)  # fmt: skip
from coordinator.web.door import origin, show_signature
from coordinator.web.metrics import Metrics
from coordinator.web.rates import Buckets
from coordinator.web.windows import WindowRoutes

MAX_JSON = 512 * 1024  # bytes of a JSON body: a generalist of 4,096 tensors
SMALL_JSON = 64 * 1024  # ... of a thousand, more than most bases have
LARGE_AT_ONCE = 8
MAX_CHUNK = 1 << 20
CHECKS_AT_ONCE = 2  # uploads that are in memory
log = logging.getLogger("comigs-coordinator")
# Bytes that are not HTTP (answered with 400) and broken connections leave no traces in the log.
logging.getLogger("aiohttp.server").addFilter(
    lambda record: not (record.exc_info and isinstance(record.exc_info[1], (HttpProcessingError, ConnectionError)))
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SignedHandler = Callable[[web.Request, Device, bytes], Awaitable[web.StreamResponse]]


class Server:
    """A fleet on the network; `epoch` changes with every start."""

    def __init__(self, fleet: Fleet, version: str, is_open: bool = False, private: PrivateRounds | None = None) -> None:
        """`is_open` shows the status page and the metrics to everybody; otherwise only this machine sees them."""
        self.fleet, self.version, self.is_open, self.private = fleet, version, is_open, private
        self.epoch, self.started = os.urandom(8).hex(), fleet.clock()
        self.metrics = Metrics()
        self.nonces = signatures.Nonces()
        self.requests = Buckets(rate=10.0, burst=100.0)  # of one device, uploads apart
        self.pieces = Buckets(rate=40.0, burst=200.0)  # ... of its uploads: 40 MB/s on a good link
        self.failures = Buckets(rate=0.2, burst=20.0)  # of one address whose requests are refused
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._checks = asyncio.Semaphore(CHECKS_AT_ONCE)
        self.wake = asyncio.Event()
        self._windows = WindowRoutes(private, self._locks, self._checks, self.wake)

    # Requests -----------------------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        """All routes."""
        app = web.Application(middlewares=[self._shell], client_max_size=MAX_CHUNK)
        app.add_routes([
            web.get("/", self._page), web.get("/metrics", self._metrics), web.get("/openapi.json", self._openapi),
            web.get("/v1/hello", self._hello), web.post("/v1/join", self._join),
            web.get("/v1/state", self._require_signature(self._state)),
            web.get("/v1/manifests", self._require_signature(self._manifests)),
            web.get("/v1/generalists/{number}", self._require_signature(self._generalist)),
            web.get("/v1/changes/{number}", self._require_signature(self._change)),
            web.head("/v1/uploads/{sha256}", self._require_signature(self._offset)),
            web.patch("/v1/uploads/{sha256}", self._require_signature(self._append, MAX_CHUNK)),
            web.post("/v1/updates", self._require_signature(self._commit)),
            web.post("/v1/refusals", self._require_signature(self._refuse)),
            web.get("/v1/windows/{window}", self._require_signature(self._windows.show)),
            web.post("/v1/windows/{window}/{stage}", self._require_signature(self._windows.give)),
        ])  # fmt: skip
        return app

    @web.middleware
    async def _shell(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every refusal and error becomes a `Problem`; a failing disk ends the process."""
        await asyncio.sleep(0)  # many requests that one connection sent at once hold up nobody
        start, resource = time.perf_counter(), request.match_info.route.resource
        try:
            answer = await handler(request)
        except Refused as error:
            answer = problem(error)
        except web.HTTPException as error:
            answer = problem(Refused(error.status, error.reason.lower().replace(" ", "_"), _http_sentence(error, request)))
        except (DiskFailure, sqlite3.OperationalError) as error:
            answer = problem(disk_trouble(error))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            answer = problem(passing_trouble(error) or self._bug(request))
        method = request.method if request.method in hdrs.METH_ALL else "other"
        route = "other" if resource is None else resource.canonical
        self.metrics.count(method, route, answer.status, time.perf_counter() - start)
        if answer.status == 507:
            log.warning("the disk is full: what devices send is refused, and they keep it until there is room")
        if not answer.prepared:
            answer.headers[signatures.EPOCH_HEADER] = self.epoch
        return answer

    @staticmethod
    def _bug(request: web.Request) -> Refused:
        log.exception("a request failed: %s %s", request.method, request.match_info.route.resource)
        return Refused(500, "bug", "the coordinator failed; its log says why")

    def _require_signature(self, handler: SignedHandler, limit: int = MAX_JSON) -> Handler:
        """Admits members only, each request once; a body is read after its head was verified."""

        async def run(request: web.Request) -> web.StreamResponse:
            checked = self._verify(request)
            device = self.fleet.members.member(checked.key_id)
            show_signature(request, device.id)
            (self.pieces if request.path.startswith("/v1/uploads/") else self.requests).take(device.id, time.monotonic())
            body = await read_body(request, limit)
            checked.check_body(body)
            answer = await handler(request, device, body)
            self.fleet.members.record_contact(device, len(body), 0)
            return answer

        return run

    def _verify(self, request: web.Request) -> signatures.Verified:
        find = lambda key_id: self.fleet.members.member(key_id).public_key  # noqa: E731
        try:
            return signatures.verify(_to_verify(request), find, self.epoch, self.nonces, time.monotonic())
        except Refused as error:
            if error.code not in ("stale_epoch", "revoked"):
                self.failures.take(origin(request.remote or ""), time.monotonic())
            raise

    # Answers ------------------------------------------------------------------------------------------------------

    async def _hello(self, request: web.Request) -> web.Response:
        return answer(Hello(fleet=self.fleet.id, epoch=self.epoch, version=self.version, settings=self.fleet.config.settings))

    async def _join(self, request: web.Request) -> web.Response:
        try:
            wish = await self._read_wish(request)
            joined = self.fleet.join(wish)
        except Refused as error:
            if error.status != 503:  # guesses are answered slowly; an invitation that is good is never turned away for others'
                self.failures.take(origin(request.remote or ""), time.monotonic())
            raise
        show_signature(request, keys.device_id(wish.public_key))
        log.info("%s joined", joined.name)
        return answer(joined)

    async def _read_wish(self, request: web.Request) -> Join:
        """A signed wish to join; whoever sends it is a stranger, so a body that is not small wants one of few places."""
        if (request.content_length or 0) <= SMALL_JSON:
            body = await read_body(request, SMALL_JSON)
        elif self._large.locked():
            raise Refused(503, "busy", "too many large messages at once; try again", 5)
        else:
            async with self._large:
                body = await read_body(request, MAX_JSON)
        wish = parse(body, Join)

        def find(key_id: str) -> Ed25519PublicKey:
            if key_id != keys.device_id(wish.public_key):
                raise Refused(401, "wrong_key_id", "the request is not signed with the key that it brings")
            return keys.public_key(wish.public_key)

        try:
            keys.public_key(wish.public_key)
        except ValueError as error:
            raise Refused(422, "bad_key", "the public key is not an Ed25519 key") from error
        signatures.verify(_to_verify(request), find, self.epoch, self.nonces, time.monotonic()).check_body(body)
        return wish

    async def _state(self, request: web.Request, device: Device, body: bytes) -> web.Response:
        return answer(self._where(device))

    def _where(self, device: Device) -> State:
        return (self.private or self.fleet).state(device)

    async def _manifests(self, request: web.Request, device: Device, body: bytes) -> web.Response:
        after = number(request.query.get("after", "-1"))
        return web.Response(body=msgspec.json.encode(self.fleet.chain.manifests(after)), content_type="application/json")

    async def _generalist(self, request: web.Request, device: Device, body: bytes) -> web.StreamResponse:
        wanted = number(request.match_info["number"])
        query = "SELECT sha256 FROM rounds WHERE number = ?"
        sha256 = self.fleet.database.value(query, wanted) if self.fleet.may_read(device, wanted) else None
        return await self._send(request, device, sha256, f"generalist {wanted} is not here; ask for the newest")

    async def _change(self, request: web.Request, device: Device, body: bytes) -> web.StreamResponse:
        wanted = number(request.match_info["number"])  # it says what two generalists differ in: for who may read both
        query = "SELECT change_sha256 FROM rounds WHERE number = ?"
        may_read = all(self.fleet.may_read(device, each) for each in (wanted - 1, wanted))
        sha256 = self.fleet.database.value(query, wanted) if may_read else None
        return await self._send(request, device, sha256, f"the change to generalist {wanted} is not here; ask for the generalist")

    async def _send(self, request: web.Request, device: Device, sha256: str | None, missing: str) -> web.StreamResponse:
        path = None if sha256 is None else self.fleet.payloads.path(sha256)
        if path is None or not path.exists():
            raise Refused(404, "no_generalist", missing)
        check_range(request, path.stat().st_size)
        sent = SentFile(path, headers={signatures.EPOCH_HEADER: self.epoch, "Content-Type": "application/octet-stream"})
        await sent.prepare(request)  # sends it
        self.fleet.members.record_contact(device, 0, sent.content_length or 0)
        return sent

    async def _offset(self, request: web.Request, device: Device, body: bytes) -> web.Response:
        offset = self.fleet.payloads.offset(device.id, sha256_of(request))
        return web.Response(headers={"Upload-Offset": str(offset), "Cache-Control": "no-store"})

    async def _append(self, request: web.Request, device: Device, body: bytes) -> web.Response:
        sha256, offset = sha256_of(request), number(request.headers.get("Upload-Offset", ""))
        if request.content_type != "application/offset+octet-stream":
            raise Refused(415, "wrong_type", "a piece of an upload has the type application/offset+octet-stream")
        if offset + len(body) > (limit := self.fleet.upload_limit()):
            raise Refused(413, "too_large", f"an update of this fleet has {limit:,} bytes at most")
        async with self._locks[device.id]:
            offset = await asyncio.to_thread(self.fleet.payloads.append, device.id, sha256, offset, body)
        return web.Response(status=204, headers={"Upload-Offset": str(offset)})

    async def _commit(self, request: web.Request, device: Device, body: bytes) -> web.Response:
        wish = parse(body, Commit)
        if self.private is not None and wish.trained_from >= 0:
            raise Refused(409, "private", "this fleet is private and takes no single updates; upgrade comigs-edge on this device")
        async with self._locks[device.id]:
            receipt = self.fleet.receipt_if_counted(device, wish)
            if receipt is None:
                table = self.fleet.table(wish.trained_from)
                with self.fleet.payloads.hold(wish.sha256):
                    async with self._checks:
                        checked = await asyncio.to_thread(self.fleet.check_upload, device, wish, table)
                    receipt = self.fleet.record(device, wish, checked)
                log.info("round %d: %s, weight %.2f", receipt.round, device.name, receipt.weight)
                self.wake.set()
        receipt.state = self._where(device)
        return answer(receipt)

    async def _refuse(self, request: web.Request, device: Device, body: bytes) -> web.Response:
        refusal = parse(body, Refusal)
        counts = self.fleet.refuse(device, refusal)
        note = "; it refuses most of them and is not counted" if device.id in self.fleet.chain.habitual() else ""
        log.info("%s keeps its generalist and not %d%s", device.name, refusal.round, note)
        return web.json_response(counts)

    # For people and programs on this machine ----------------------------------------------------------------------

    def _check_shown(self, request: web.Request) -> None:
        if not self.is_open and not is_local(request):
            raise Refused(403, "local_only", "this is shown on the coordinator's own machine; `serve --open` shows it to all")

    async def _page(self, request: web.Request) -> web.Response:
        self._check_shown(request)
        text = page.render(self.fleet, self.started, self.version, self.private)
        return web.Response(text=text, content_type="text/html", headers=page.HEADERS)

    async def _metrics(self, request: web.Request) -> web.Response:
        self._check_shown(request)
        text = self.metrics.render(self.fleet, self.started, self.version, self.private)
        return web.Response(text=text, content_type="text/plain")

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.Response(body=openapi.document(self.version), content_type="application/json")


def _http_sentence(error: web.HTTPException, request: web.Request) -> str:
    return {
        404: "there is nothing here; /openapi.json says what there is",
        405: f"{request.method} is not for this address; /openapi.json says what is",
        413: f"the body may have {MAX_CHUNK:,} bytes",
    }.get(error.status, error.reason)


def _to_verify(request: web.Request) -> signatures.Request:
    return signatures.Request(request.method, f"https://{request.host}{request.raw_path}", request.headers)
