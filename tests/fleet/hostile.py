"""A coordinator that holds the pinned key and answers what it likes, byte for byte."""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading
from typing import NamedTuple

from comigs_edge.fleet.http import HTTPTransport
from coordinator.protocol import keys
from coordinator.protocol.messages import Hello, encode

HELLO = encode(Hello(fleet="f" * 16, epoch="0" * 16, version="x"))


class Request(NamedTuple):
    """`fields` have names in small letters."""

    method: str
    path: str
    fields: dict[str, str]
    body: bytes


def http(body=b"", status=200, headers=(), length=True):
    """An answer's bytes."""
    fields = [*headers, *([("Content-Length", len(body))] if length else [])]
    return f"HTTP/1.1 {status} x\r\n".encode() + b"".join(f"{k}: {v}\r\n".encode("latin-1") for k, v in fields) + b"\r\n" + body


class Hostile:
    """`answer(request)` gives the bytes, or an iterator of them; `hello` those of the greeting."""

    def __init__(self, folder, answer=None):
        key, certificate = keys.new_certificate()
        (folder / "key").write_bytes(key)
        (folder / "certificate").write_bytes(certificate)
        self.pin = keys.fingerprint(certificate)
        self.begin(answer)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate", folder / "key")
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError, ValueError):
                    self.request = context.wrap_socket(self.request, server_side=True)
                    stream = self.request.makefile("rb")
                    while line := stream.readline():
                        outer.one(self.request, stream, line)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.address = f"https://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def begin(self, answer=None):
        """Answers this from now on."""
        self.answer, self.hello, self.requests = answer, http(HELLO), []

    def one(self, connection, stream, line):
        method, path, _ = line.decode().split()
        fields = {}
        while (field := stream.readline().decode()).strip():
            name, _, value = field.partition(":")
            fields[name.lower()] = value.strip()
        request = Request(method, path, fields, stream.read(int(fields.get("content-length", 0))))
        self.requests.append(request)
        found = self.hello if path == "/v1/hello" else self.answer(request)
        for piece in [found] if isinstance(found, bytes) else found:
            connection.sendall(piece)
        if found != self.hello:
            raise ValueError("one answer a connection")

    def device(self, patience=1.0):
        """A device's client."""
        transport = HTTPTransport(self.address, self.pin, keys.new_key(), "d" * 32, patience)
        transport.attempt = patience
        return transport

    def close(self):
        self.server.shutdown()
        self.server.server_close()
