"""A coordinator that holds the pinned key and answers what it likes, byte for byte."""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading

from comigs_edge.fleet.http import HTTPTransport
from coordinator.protocol import keys
from coordinator.protocol.messages import Hello, encode

HELLO = encode(Hello(fleet="f" * 16, epoch="0" * 16, version="x"))


def http(body=b"", status=200, headers=(), length=True):
    """An answer's bytes."""
    fields = [*headers, *([("Content-Length", len(body))] if length else [])]
    return f"HTTP/1.1 {status} x\r\n".encode() + b"".join(f"{k}: {v}\r\n".encode("latin-1") for k, v in fields) + b"\r\n" + body


class Hostile:
    """`answer(method, path)` gives the bytes, or an iterator of them; `hello` those of the greeting."""

    def __init__(self, folder, answer=None):
        key, certificate = keys.new_certificate()
        (folder / "key").write_bytes(key)
        (folder / "certificate").write_bytes(certificate)
        self.pin, self.answer, self.hello, self.requests = keys.fingerprint(certificate), answer, http(HELLO), 0
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
        self.server.daemon_threads = True
        self.address = f"https://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def one(self, connection, stream, line):
        self.requests += 1
        method, path, _ = line.decode().split()
        length = 0
        while (field := stream.readline().decode().lower()).strip():
            length = int(field.split(":")[1]) if field.startswith("content-length") else length
        stream.read(length)
        found = self.hello if path == "/v1/hello" else self.answer(method, path)
        for piece in [found] if isinstance(found, bytes) else found:
            connection.sendall(piece)
        if found != self.hello:
            raise ValueError("one answer a connection")

    def device(self, patience=1.0):
        """A device's client."""
        return HTTPTransport(self.address, self.pin, keys.new_key(), "d" * 32, patience)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
