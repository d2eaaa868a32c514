"""A bad network between a device and the coordinator: a TCP proxy, in a thread of its own, that does what it is told.

TLS passes through it unread, so it can neither sign nor change anything; all it can do is be slow, silent or gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass

PIECE = 4096


@dataclass
class Faults:
    """What goes wrong. Bytes are counted from the device to the coordinator unless `down` is said."""

    delay: float = 0.0  # seconds that every piece waits
    rate: float = 0.0  # bytes a second of all connections together, each way; 0: no limit
    cut_after: tuple[int, int] = (0, 0)  # each connection is cut after so many bytes, drawn from this range; (0, 0): never
    cut_down_after: tuple[int, int] = (0, 0)  # the same for the coordinator's bytes
    is_reset: bool = True  # cut with RST; otherwise in order, as if the peer had nothing more to say
    stall_after: int = 0  # bytes after which a connection stays open and silent; 0: never
    drop_share: float = 0.0  # of the connections are reset as soon as they come
    flap: tuple[float, float] = (0.0, 0.0)  # seconds with a network and without one, in turn


class InThread:
    """A server in a thread with a loop of its own, as a context: `_serve` sets `_ready` and ends when `_stop` is set."""

    def __init__(self):
        self._loop, self._ready = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *unused):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()


class Proxy(InThread):
    """Use it as a context; `port` is where a device connects. `up` and `down` are bytes that passed."""

    def __init__(self, port, faults, seed=1):
        self.target, self.faults = port, faults
        self.up = self.down = self.connections = self.dropped = self.cuts = 0
        self._random, self._free = random.Random(seed), {"up": 0.0, "down": 0.0}
        super().__init__()
        self._open = set()

    async def _serve(self):
        self._stop, self._start = asyncio.Event(), time.monotonic()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        flapping = asyncio.create_task(self._flap())
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(flapping, *others, return_exceptions=True)

    def _is_down(self):
        up, down = self.faults.flap
        return down > 0 and (time.monotonic() - self._start) % (up + down) >= up

    async def _flap(self):
        """Resets what is open when the network goes."""
        while self.faults.flap[1] > 0:
            if self._is_down() and self._open:
                self.cuts += len(self._open)
                for writers in list(self._open):
                    self._cut(writers, is_reset=True)
            await asyncio.sleep(0.02)

    async def _connected(self, reader, writer):
        self.connections += 1
        if self._is_down() or self._random.random() < self.faults.drop_share:
            self.dropped += 1
            self._cut((writer,), is_reset=True)
            return
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self.target)
        writers = (writer, other_writer)
        self._open.add(writers)
        limits = [self._random.randint(*pair) if pair[1] else 0 for pair in (self.faults.cut_after, self.faults.cut_down_after)]
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(
                self._pass(reader, other_writer, "up", limits[0], writers),
                self._pass(other_reader, writer, "down", limits[1], writers),
            )
        self._open.discard(writers)
        for each in writers:
            each.close()

    async def _pass(self, reader, writer, way, limit, writers):
        passed = 0
        while data := await reader.read(PIECE):
            if self.faults.stall_after and way == "up" and passed >= self.faults.stall_after:
                await asyncio.sleep(3600)
            await self._wait(way, len(data))
            if limit and passed + len(data) >= limit:
                self.cuts += 1
                self._cut(writers, self.faults.is_reset)
                return
            passed += len(data)
            setattr(self, way, getattr(self, way) + len(data))
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _wait(self, way, count):
        if self.faults.delay:
            await asyncio.sleep(self.faults.delay)
        if self.faults.rate:
            now = time.monotonic()
            self._free[way] = max(self._free[way], now) + count / self.faults.rate
            await asyncio.sleep(self._free[way] - now)

    def _cut(self, writers, is_reset):
        self._open.discard(writers)
        for writer in writers:
            found = writer.get_extra_info("socket")
            if is_reset and found is not None:
                with contextlib.suppress(OSError):
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()
