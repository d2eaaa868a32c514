"""A proxy that holds the coordinator's TLS key, so that a device trusts it: passes everything on, and keeps every request."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from tests.coordinator.proxy import InThread


class Recorded(NamedTuple):
    """One request, as it was on the wire."""

    method: str
    path: str
    query: dict
    headers: dict
    body: bytes


class Recorder(InThread):
    """Use it as a context; `port` is where a device connects. Connections end at once while `is_away`."""

    def __init__(self, coordinator):
        super().__init__()
        self.coordinator, self.is_away, self._streams, self._writers = coordinator, False, [], []

    def link(self, name=None):
        """An invitation whose address is this proxy's."""
        return self.coordinator.invite(name).replace(f":{self.coordinator.port}#", f":{self.port}#")

    @property
    def wire(self):
        """All bytes that came from devices, decrypted."""
        return b"".join(map(bytes, self._streams))

    def requests(self):
        """All requests; raises where bytes are no request."""
        return [request for stream in self._streams for request in _requests(bytes(stream))]

    async def _serve(self):
        self._stop, keys = asyncio.Event(), self.coordinator.data / "keys"
        outer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        outer.load_cert_chain(keys / "tls.pem", keys / "tls.key")
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=outer)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.05)  # transports close in a later turn of the loop

    async def _connected(self, reader, writer):
        self._writers.append(writer)
        if self.is_away:
            writer.transport.abort()
            return
        inner = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        inner.check_hostname, inner.verify_mode = False, ssl.CERT_NONE
        there, to_there = await asyncio.open_connection("127.0.0.1", self.coordinator.port, ssl=inner)
        self._writers.append(to_there)
        self._streams.append(stream := bytearray())
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.wait(
                [asyncio.create_task(each) for each in (_pass(reader, to_there, stream), _pass(there, writer, bytearray()))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        for each in (writer, to_there):
            each.close()


async def _pass(reader, writer, stream):
    while data := await reader.read(1 << 16):
        stream += data
        writer.write(data)
        await writer.drain()


def _requests(stream):
    while stream:
        head, _, stream = stream.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = dict(line.split(": ", 1) for line in lines)
        size = int(headers.get("Content-Length", 0))
        parts = urlsplit(target)
        yield Recorded(method, parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), headers, stream[:size])
        stream = stream[size:]
