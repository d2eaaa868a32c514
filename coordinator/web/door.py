"""Who may be connected: strangers are few, all in all and from one address, and nobody is waited for without end.

A connection counts from its first packet, so that TLS handshakes which never finish count too, and belongs to a stranger until a
request on it has a device's signature. Where strangers have no more room, the oldest of them makes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import socket
import ssl
import struct
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import cast

from aiohttp import web

from coordinator.protocol.errors import Refused
from coordinator.web.rates import Buckets

STRANGERS = 200  # connections
STRANGERS_OF_ADDRESS = 8
STRANGERS_OF_KNOWN_ADDRESS = 64  # ... from which a member came: others may be behind the same router or tunnel
MEMBER_CONNECTIONS = 8  # of one device
KNOWN_ADDRESSES = 1000
STAY_SECONDS = 0.5  # that a connection has to show who it is before another takes its place
HANDSHAKES = 30.0  # of one address at once, and then one a second: each costs as much as a hundred answers
HANDSHAKES_OF_KNOWN_ADDRESS = 300.0  # ... and then ten a second
STRANGER_SECONDS = 90.0  # of a stranger's connection, whatever it does
WRITE_SECONDS = 30.0  # in which a full buffer must get emptier
HANDSHAKE_PAUSE = 0.005  # seconds between two that come from addresses which are not known
HANDSHAKE_SECONDS = 10.0
COLLECT_EVERY = 64  # dropped connections
log = logging.getLogger("comigs-coordinator")


class Door:
    """Takes connections and hands those that may stay to protocols that `make_protocol` makes."""

    def __init__(
        self, make_protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext, strangers: int = STRANGERS
    ) -> None:
        self._make_protocol, self._context, self._room = make_protocol, context, strangers
        self._strangers: dict[Connection, None] = {}  # oldest first
        self._members: defaultdict[str, list[Connection]] = defaultdict(list)  # device -> oldest first
        self._known: dict[str, None] = {}  # addresses, the one seen last at the end
        self._listening: list[socket.socket] = []
        self._dropped = 0
        self._turn = asyncio.Lock()
        self._handshakes = Buckets(rate=1.0, burst=HANDSHAKES)
        self._known_handshakes = Buckets(rate=10.0, burst=HANDSHAKES_OF_KNOWN_ADDRESS)
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, listening: list[socket.socket]) -> None:
        """Begins to take connections."""
        self._listening = listening
        gc.freeze()  # what was imported is not looked through again
        for each in listening:
            each.setblocking(False)
            self._start(self._accept(each))

    async def close(self) -> None:
        """Takes none any more, and ends handshakes; what is connected stays."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in self._listening:
            each.close()

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                taken, peer = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:  # no descriptor is left, or the peer is gone already
                log.warning("a connection could not be taken: %s", error)
                self._drop_oldest(list(self._strangers), 0.0)
                await asyncio.sleep(0.1)
                continue
            self._take(taken, origin(peer[0]))
            await asyncio.sleep(0)  # those that are in go first

    def _take(self, taken: socket.socket, address: str) -> None:
        """Lets a connection in if there is room for it."""
        is_known = address in self._known
        here = [each for each in self._strangers if each.address == address]
        room = STRANGERS_OF_KNOWN_ADDRESS if is_known else STRANGERS_OF_ADDRESS
        full = here if len(here) >= room else list(self._strangers) if len(self._strangers) >= self._room else None
        age = 0.0 if is_known and full is not here else STAY_SECONDS
        if full is not None and not self._drop_oldest(full, age):
            _reset(taken)
            return
        connection = Connection(self, address, self._make_protocol)
        self._strangers[connection] = None
        connection.handshake = self._start(self._shake_hands(connection, taken))

    def _drop_oldest(self, connections: list[Connection], age: float) -> bool:
        """Drops the first if it is at least so many seconds old; returns whether it did."""
        if not connections or asyncio.get_running_loop().time() - connections[0].since < age:
            return False
        connections[0].drop()
        self._dropped += 1
        if self._dropped % COLLECT_EVERY == 0:  # TLS and its transport refer to each other, with buffers of 100 kB
            gc.collect()
        return True

    async def _shake_hands(self, connection: Connection, taken: socket.socket) -> None:
        loop, may_begin = asyncio.get_running_loop(), False
        buckets = self._known_handshakes if connection.address in self._known else self._handshakes
        try:
            await asyncio.wait_for(_readable(taken), HANDSHAKE_SECONDS)  # who says nothing costs nothing
            buckets.take(connection.address, loop.time())
            if buckets is self._handshakes:
                async with self._turn:  # between two of them members go on
                    await asyncio.sleep(HANDSHAKE_PAUSE)
            may_begin = True
            await loop.connect_accepted_socket(
                lambda: connection, taken, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except (OSError, asyncio.TimeoutError, Refused):  # not TLS, too slow, too often, or gone
            connection.end()
        finally:
            if not may_begin:
                _reset(taken)

    def admit(self, connection: Connection, device: str) -> None:
        """This connection is a member's: a request on it was signed by the device."""
        self._known.pop(connection.address, None)
        self._known[connection.address] = None
        if len(self._known) > KNOWN_ADDRESSES:
            del self._known[next(iter(self._known))]
        if connection not in self._strangers:
            return
        del self._strangers[connection]
        connection.stay(device)
        self._members[device].append(connection)
        if len(self._members[device]) > MEMBER_CONNECTIONS:
            self._members[device][0].drop()

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self._strangers.pop(connection, None)
        of_device = self._members.get(connection.device, [])
        if connection in of_device:
            of_device.remove(connection)
        if not of_device:
            self._members.pop(connection.device, None)


class Connection(asyncio.Protocol):
    """One connection: aiohttp's protocol, and what ends it."""

    handshake: asyncio.Task[None]

    def __init__(self, door: Door, address: str, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        loop = asyncio.get_running_loop()
        self.door, self.address, self.since, self.device = door, address, loop.time(), ""
        self._make_protocol, self._transport = make_protocol, cast("asyncio.Transport | None", None)
        self._stay = loop.call_later(STRANGER_SECONDS, self.drop)
        self._deaf: asyncio.TimerHandle | None = None

    def stay(self, device: str) -> None:
        """It is this device's, and may last."""
        self.device = device
        self._stay.cancel()

    def end(self) -> None:
        """It counts no more."""
        for timer in (self._stay, self._deaf):
            if timer is not None:
                timer.cancel()
        self.door.forget(self)

    def drop(self) -> None:
        """Ends it, whatever it is doing."""
        self.end()
        if self._transport is None:
            self.handshake.cancel()
        else:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is there."""
        self._transport, self._inner = cast(asyncio.Transport, transport), self._make_protocol()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """The peer has nothing more to say."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """The peer does not read as fast as it is answered."""
        self._deaf = asyncio.get_running_loop().call_later(WRITE_SECONDS, self.drop)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The peer has read."""
        if self._deaf is not None:
            self._deaf.cancel()
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        self.end()
        self._inner.connection_lost(error)


def show_signature(request: web.Request, device: str) -> None:
    """The request was signed by this device."""
    connection = None if request.transport is None else request.transport.get_protocol()
    if isinstance(connection, Connection):
        connection.door.admit(connection, device)


def origin(address: str) -> str:
    """What counts as one address: an IPv6 network of 64 bits is one household's, except among neighbours."""
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address.partition("%")[0])
        if found.version == 6 and not found.is_link_local and not found.is_loopback:
            return str(ipaddress.ip_network((found, 64), strict=False))
    return address


async def _readable(connection: socket.socket) -> None:
    """Returns when there is something to read."""
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(connection)


def _reset(connection: socket.socket) -> None:
    """Closes without a farewell, which would be remembered by the system for a minute."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
