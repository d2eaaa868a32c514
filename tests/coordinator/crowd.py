"""Many devices in one process, for load: a bare HTTP/1.1 client on asyncio that signs by hand, at a tenth of the client's cost.

It shares no code with `coordinator.protocol.signatures`, so what the coordinator accepts from here it accepts by RFC 9421.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import ssl
import time

import msgspec
import numpy as np

from coordinator import admin
from coordinator.protocol import keys, wire
from coordinator.protocol.messages import Commit, Join, encode
from tests.coordinator.rig import generalist

COVERED = '("@method" "@authority" "@path" "@query" "content-digest" "comigs-epoch")'


class Connection:
    """One device's connection; it is opened again where the coordinator has closed it."""

    def __init__(self, port, key, device):
        self.port, self.key, self.device, self.epoch = port, key, device, ""
        self.reader = self.writer = None
        self.connects = 0

    async def open(self):
        """Connects, and learns the epoch the first time."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the pin is tested elsewhere
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context, limit=1 << 20)
        self.connects += 1
        if not self.epoch:
            self.epoch = msgspec.json.decode((await self._exchange("GET", "/v1/hello", b"", ""))[2])["epoch"]

    async def ask(self, method, path, body=b"", headers=""):
        """Status, headers and body of the answer to a signed request."""
        if self.writer is None or self.reader.at_eof():
            await self.open()
        try:
            return await self._exchange(method, path, body, headers + self._signature(method, path, body))
        except (ConnectionError, asyncio.IncompleteReadError):  # it was closed as idle just now
            await self.open()
            return await self._exchange(method, path, body, headers + self._signature(method, path, body))

    def _signature(self, method, path, body):
        digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
        nonce = base64.urlsafe_b64encode(os.urandom(12)).decode()
        parameters = f'{COVERED};created={int(time.time())};keyid="{self.device}";alg="ed25519";nonce="{nonce}";tag="comigs-edge"'
        base = (
            f'"@method": {method}\n"@authority": 127.0.0.1:{self.port}\n"@path": {path}\n"@query": ?\n'
            f'"content-digest": {digest}\n"comigs-epoch": {self.epoch}\n"@signature-params": {parameters}'
        )
        signature = base64.b64encode(self.key.sign(base.encode())).decode()
        return (
            f"Comigs-Epoch: {self.epoch}\r\nContent-Digest: {digest}\r\nSignature-Input: comigs={parameters}\r\n"
            f"Signature: comigs=:{signature}:\r\n"
        )

    async def _exchange(self, method, path, body, headers):
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n{length}{headers}\r\n".encode())
        if body:
            self.writer.write(body)
            await self.writer.drain()
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        length = 0 if method == "HEAD" else int(fields.get("content-length", 0))
        answer = await self.reader.readexactly(length) if length else b""
        if fields.get("connection") == "close":
            self.close()
        return int(head[0].split()[1]), fields, answer

    def close(self):
        """Ends the connection."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class Payload:
    """The bytes of an update that differs from the template's in one number; pieces are made as they are needed."""

    def __init__(self, template, number):
        self._template, self._patch, self._at = template, np.float32(number / 1024).tobytes(), len(template) - 4
        digest = hashlib.sha256(memoryview(template)[: self._at])
        digest.update(self._patch)
        self.sha256, self.size = digest.hexdigest(), len(template)

    def piece(self, start, length):
        """So many bytes from there."""
        stop = min(start + length, self.size)
        if stop <= self._at:
            return self._template[start:stop]
        return self._template[start : self._at] + self._patch


def template(shapes, seed=0):
    """An update's bytes."""
    rng = np.random.default_rng(seed)
    return wire.encode({name: rng.standard_normal(shape, np.float32) / 64 for name, shape in shapes.items()})


async def join(coordinator, shapes, count):
    """So many devices, joined and connected."""
    found = []
    for _ in range(count):
        link = admin.call(coordinator.data, "test", "invite")["link"]
        code, key = keys.read_link(link)[1], keys.new_key()
        public = keys.public_text(key)
        connection = Connection(coordinator.port, key, keys.device_id(public))
        wish = Join(code=code, name=None, public_key=public, generalist=generalist(shapes), version="test")
        status, _, answer = await connection.ask("POST", "/v1/join", encode(wish))
        assert status == 200, answer
        found.append(connection)
    return found


async def upload(connection, payload, piece=1 << 18):
    """Brings a payload; returns the statuses that were not 204."""
    done, odd = 0, []
    while done < payload.size:
        headers = f"Upload-Offset: {done}\r\nContent-Type: application/offset+octet-stream\r\n"
        body = payload.piece(done, piece)
        status, fields, _ = await connection.ask("PATCH", f"/v1/uploads/{payload.sha256}", body, headers)
        if status == 204:
            done = int(fields["upload-offset"])
        else:
            odd.append(status)
            await asyncio.sleep(float(fields.get("retry-after", 0.1)))
    return odd


async def commit(connection, payload, trained_from, expected_round):
    """The status of making it an update, and the answer."""
    wish = Commit(sha256=payload.sha256, trained_from=trained_from, tokens=1000, expected_round=expected_round)
    status, _, answer = await connection.ask("POST", "/v1/updates", encode(wish))
    return status, answer
