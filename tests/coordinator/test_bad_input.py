"""Bad input against a real coordinator over TLS: never a 5xx, always a sentence, little time, little memory, nothing changed.

Each case comes from an address of its own (127.1.0.N), so that nobody is refused for another's requests. Time is all of the
process's threads' (/proc/PID/task/*/schedstat), memory the highest that was reached meanwhile (VmHWM, reset before).
`pytest -s` shows the table.
"""

import contextlib
import datetime
import gzip
import hashlib
import itertools
import json
import socket
import ssl
import statistics
import struct
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from http_message_signatures import HTTPMessageSigner, algorithms

from coordinator import admin
from coordinator.protocol import compress, keys, signatures, wire
from coordinator.protocol.messages import Commit, Join, Problem, decode, encode
from coordinator.protocol.signatures import COVERED, EPOCH_HEADER, TAG, Request
from tests.coordinator.rig import Coordinator, Member, generalist

SHAPES = {"generalist.blk.0.ffn_up.lora_a": (256, 512), "generalist.blk.0.ffn_up.lora_b": (512, 256)}  # 1 MB
MAX_CPU, MAX_RSS = 0.050, 8e6  # seconds, bytes
REPEATS = 3
OFFSET = "application/offset+octet-stream"
CASES, TABLE = {}, {}
addresses = (f"127.1.{number // 250}.{number % 250 + 1}" for number in itertools.count())


class Answer(NamedTuple):
    status: int  # 0: the connection ended without one
    headers: dict
    body: bytes


NOTHING = Answer(0, {}, b"")


def case(*statuses, problem=True):
    """A class of bad input: a generator of answers, all of these statuses. `problem`: whether they have to be sentences."""

    def keep(function):
        CASES[function.__name__] = (function, statuses, problem)
        return function

    return keep


class Line:
    """Raw bytes to a coordinator, from an address of its own."""

    def __init__(self, port, tls=True, patience=8):
        self.socket = socket.create_connection(("127.0.0.1", port), patience, source_address=(next(addresses), 0))
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.socket = context.wrap_socket(self.socket)
        self._read = b""

    def send(self, data):
        with contextlib.suppress(OSError):  # the coordinator may have had enough
            self.socket.sendall(data)

    def answer(self, method="GET"):
        try:
            while b"\r\n\r\n" not in self._read:
                if not (piece := self.socket.recv(1 << 16)):
                    return NOTHING
                self._read += piece
            head, self._read = self._read.split(b"\r\n\r\n", 1)
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
            size = 0 if method == "HEAD" else int(headers.get("content-length", 0))
            while len(self._read) < size:
                if not (piece := self.socket.recv(1 << 16)):
                    break
                self._read += piece
            body, self._read = self._read[:size], self._read[size:]
            return Answer(int(first.split()[1]), headers, body)
        except OSError:
            return NOTHING

    def close(self):
        self.socket.close()


class Place:
    """A coordinator with a fleet of two, and what the cases need."""

    def __init__(self, folder):
        self.coordinator = Coordinator(folder / "data", update_format="float32")
        self.port = self.coordinator.port
        self.log = Path(self.coordinator.log.name)
        # links come through the socket: a process for each takes long
        self.good, self.revoked = (Member(self.invite(name), shapes=SHAPES) for name in ("good", "revoked"))
        # many, for one may not ask so often
        self._bad = itertools.cycle([Member(self.invite(f"bad-{number}"), shapes=SHAPES) for number in range(15)])
        self.good.push(self.update(1.0))
        self.coordinator.until(lambda status: status["newest_round"] == 0)
        admin.call(self.coordinator.data, "test", "revoke", name="revoked")
        self.spent = self.invite()
        Member(self.spent, shapes=SHAPES)
        self.host = f"127.0.0.1:{self.port}"
        self.epoch = json.loads(self.raw(b"GET /v1/hello HTTP/1.1\r\nHost: x\r\n\r\n").body)["epoch"]

    @property
    def bad(self):
        return next(self._bad)

    def invite(self, name=None):
        return admin.call(self.coordinator.data, "test", "invite", name=name, address=None)["link"]

    @staticmethod
    def update(value):
        return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}

    def raw(self, data, method="GET", tls=True, count=1, patience=8):
        line = Line(self.port, tls, patience)
        line.send(data)
        found = [line.answer(method) for _ in range(count)]
        line.close()
        return found[0] if count == 1 else found

    def head(self, method, path, body=b"", headers=(), member=None, sign=True, key=None, **options):
        """The bytes of a request's head, signed; `headers` replace or, with None, remove."""
        member = member or self.bad
        request = Request(method, f"https://{self.host}{path}", {"Host": self.host})
        if sign:
            self.sign(request, key or member.key, options.pop("key_id", member.id), body, **options)
        if body or method in ("POST", "PATCH"):
            request.headers["Content-Length"] = str(len(body))
        named = request.headers | dict(headers)
        lines = [f"{name}: {value}" for name, value in named.items() if value is not None]
        return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1")

    def sign(self, request, key, key_id, body, covered=COVERED, **options):
        request.headers[EPOCH_HEADER] = options.pop("epoch", self.epoch)
        given = {"key_id": key_id, "nonce": f"{time.monotonic_ns()}", "tag": TAG, "label": "comigs", "body": body, **options}
        signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=signatures.Lookup(lambda _: key))
        signer.sign(request, covered_component_ids=covered, **given)

    def ask(self, method, path, body=b"", headers=(), send=None, **options):
        """A signed request; `send` is the body that is really sent."""
        return self.raw(self.head(method, path, body, headers, **options) + (body if send is None else send), method)

    def bring(self, data, member):
        """Uploads bytes; returns their hash, or the answer that refused them."""
        sha256 = hashlib.sha256(data).hexdigest()
        for start in range(0, len(data), 1 << 20):
            headers = {"Upload-Offset": str(start), "Content-Type": OFFSET}
            found = self.ask("PATCH", f"/v1/uploads/{sha256}", data[start : start + (1 << 20)], headers, member=member)
            if found.status == 409:
                return sha256  # it is here from an earlier run
            if found.status != 204:
                return found
        return sha256

    def commit(self, sha256, member=None, **changes):
        fields = {"sha256": sha256, "trained_from": 0, "tokens": 10, "expected_round": 1, "validation_loss": None}
        return self.ask("POST", "/v1/updates", json.dumps({**fields, **changes}).encode(), member=member)

    def submit(self, data):
        member = self.bad
        found = self.bring(data, member)
        return self.commit(found, member) if isinstance(found, str) else found

    def post(self, body, path="/v1/updates", **options):
        return self.ask("POST", path, body, {"Content-Type": "application/json"}, **options)

    def join(self, link, key=None, signer=None, key_id=None, **changes):
        _, code, _ = keys.read_link(link)
        key = key or keys.new_key()
        public = keys.public_text(key)
        wish = Join(code=code, name=None, public_key=public, generalist=generalist(SHAPES), version="x")
        body = encode(msgspec.structs.replace(wish, **changes))
        return self.post(body, "/v1/join", key=signer or key, key_id=key_id or keys.device_id(public))

    # What is looked at --------------------------------------------------------------------------------------------

    def ledger(self):
        """What must not change; last contacts and counts of bytes do."""
        rounds = admin.call(self.coordinator.data, "test", "rounds", last=1000)
        devices = admin.call(self.coordinator.data, "test", "devices")["devices"]
        fixed = ("id", "name", "joined", "revoked", "updates", "last_round", "validation_loss")
        return rounds, [{name: device[name] for name in fixed} for device in devices]

    def cpu(self):
        tasks = Path(f"/proc/{self.coordinator.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def reset_peak(self):
        Path(f"/proc/{self.coordinator.process.pid}/clear_refs").write_text("5")

    def memory(self, name):
        text = Path(f"/proc/{self.coordinator.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = Place(tmp_path_factory.mktemp("bad"))
    yield found
    assert found.coordinator.stop() == 0


ROUTES = (
    "/", "/metrics", "/openapi.json", "/v1/hello", "/v1/join", "/v1/state", "/v1/manifests", "/v1/generalists/0",
    f"/v1/uploads/{'ab' * 32}", "/v1/updates", "/v1/refusals",
)  # fmt: skip

# HTTP -----------------------------------------------------------------------------------------------------------------


@case(0)
def garbage_in_place_of_tls(p):
    yield p.raw(b"\x16\x03\x01\xff\xff" + bytes(range(256)) * 4, tls=False)


@case(0, 400, problem=False)
def http_without_tls(p):
    yield p.raw(b"GET /v1/hello HTTP/1.1\r\nHost: x\r\n\r\n", tls=False)


@case(0, 400, problem=False)
def garbage_within_tls(p):
    yield p.raw(bytes(range(256)) * 16 + b"\r\n\r\n")


@case(0)
def a_connection_that_says_nothing(p):
    Line(p.port).close()
    yield NOTHING


@case(401)
def http_1_0(p):
    yield p.raw(b"GET /v1/state HTTP/1.0\r\n\r\n")


@case(0, 200, 400, problem=False)  # an odd version of what anybody may know is harmless
def http_0_9_and_2_and_9(p):
    for first in (b"GET /v1/hello", b"GET /v1/hello HTTP/9.9", b"PRI * HTTP/2.0"):
        yield p.raw(first + b"\r\n\r\n", patience=0.2)  # not every one is answered at once


@case(200)
def ten_requests_at_once(p):
    yield from p.raw(b"GET /v1/hello HTTP/1.1\r\nHost: x\r\n\r\n" * 10, count=10)


@case(400, 414, problem=False)
def a_giant_request_line(p):
    yield p.raw(b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")


@case(400, 431, problem=False)
def a_giant_header_line(p):
    yield p.raw(b"GET /v1/state HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")


@case(400, 431, problem=False)
def too_many_headers(p):
    yield p.raw(b"GET /v1/state HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 5000 + b"\r\n")


@case(0, 400, problem=False)
def a_length_that_is_none(p):
    for text in (b"abc", b"-1", b"1e3", b"+1", b"0x10", b"1, 2", b"9" * 400, b""):
        yield p.raw(b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: " + text + b"\r\n\r\n{}")


@case(400, problem=False)
def two_lengths(p):
    yield p.raw(b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ")


@case(400, 411, problem=False)
def a_length_and_chunks(p):
    yield p.raw(b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")


@case(413)
def a_length_beyond_all_bounds(p):
    for size in (1 << 20, 1 << 40, (1 << 63) - 1):
        yield p.ask("POST", "/v1/updates", b"{}", {"Content-Length": size})


@case(411)
def chunks(p):
    headers = {"Content-Length": None, "Transfer-Encoding": "chunked"}
    yield p.ask("POST", "/v1/updates", b"{}", headers, send=b"2\r\n{}\r\n0\r\n\r\n")


@case(411, 400, problem=False)
def chunks_without_sense(p):
    headers = {"Content-Length": None, "Transfer-Encoding": "chunked"}
    yield p.ask("POST", "/v1/updates", b"{}", headers, send=b"ffffffffffffffffffff\r\nxx\r\n")


@case(415)
def a_compressed_body(p):
    bomb = gzip.compress(bytes(100_000_000)) if not hasattr(p, "bomb") else p.bomb
    p.bomb = bomb
    for name in ("gzip", "deflate", "br", "nonsense"):
        yield p.ask("POST", "/v1/updates", bomb, {"Content-Encoding": name})


@case(0)
def a_body_that_ends_early(p):
    line = Line(p.port)
    body = b"x" * 100_000
    line.send(p.head("PATCH", f"/v1/uploads/{'ab' * 32}", body, {"Upload-Offset": "0", "Content-Type": OFFSET}) + body[:1000])
    line.close()
    yield NOTHING


@case(417, problem=False)
def an_expectation_that_nobody_meets(p):
    yield p.raw(b"GET /v1/state HTTP/1.1\r\nHost: x\r\nExpect: the-unexpected\r\n\r\n")


@case(403, 404, 405, 400, problem=False)
def methods_that_are_not_there(p):
    for method, path in itertools.product(("DELETE", "PUT", "TRACE", "OPTIONS", "NONSENSE"), ROUTES):
        yield p.raw(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(), method)


@case(200, 401, 403, 405)
def head_on_every_route(p):
    for path in ROUTES:
        yield p.raw(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), "HEAD")


@case(400, 404, problem=False)
def targets_that_are_no_path(p):
    for target in ("*", "x", "https://evil.example/v1/nothing", "http://[::1", "//", "?", "/v1/nothing#x"):
        yield p.raw(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


@case(401)
def a_target_with_another_host(p):
    request = p.head("GET", "/v1/state").replace(b"GET /v1/state", b"GET https://evil.example/v1/state")
    yield p.raw(request)


@case(400, 401, problem=False)
def hosts_none_two_and_odd(p):
    for lines in ("", "Host: a\r\nHost: b\r\n", "Host: \r\n", "Host: a b@c:x\r\n", "Host: [\r\n"):
        yield p.raw(f"GET /v1/state HTTP/1.1\r\n{lines}\r\n".encode())


@case(400, 401, problem=False)
def headers_with_odd_bytes(p):
    for value in (b"\xff\xfe", b"a\0b", b"\x7f", b"a\rb"):
        yield p.raw(
            b"GET /v1/state HTTP/1.1\r\nHost: x\r\nSignature: x\r\nComigs-Epoch: "
            + p.epoch.encode() + b"\r\nSignature-Input: " + value + b"\r\n\r\n"
        )  # fmt: skip


@case(401, 400, problem=False)
def an_upgrade(p):
    for name in ("websocket", "h2c"):
        yield p.raw(f"GET /v1/state HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {name}\r\n\r\n".encode())


@case(400, 404)
def paths_that_lead_elsewhere(p):
    a = "ab" * 32
    for end in ("..", "../../coordinator.db", "..%2f..%2fcoordinator.db", "%2fetc%2fpasswd", "%00", "%ff", a.upper(), a[1:],
                a + "0", a + "%0a", "a" * 3000):  # fmt: skip
        yield p.ask("PATCH", f"/v1/uploads/{end}", b"x", {"Upload-Offset": "0", "Content-Type": OFFSET})


@case(400, 404)
def generalists_that_are_not_there(p):
    for number in ("--5", "-1", "-0x1", "1e3", "5", "9" * 15, "9" * 16, "9" * 3000, "a", "%C2%B2", "%D9%A3", "0%0a", "0;x"):
        yield p.ask("GET", f"/v1/generalists/{number}")


@case(400)
def manifests_behind_nonsense(p):
    for text in ("", "--5", "x", "9" * 40, "1.5", "%00", "-"):
        yield p.ask("GET", f"/v1/manifests?after={text}")


@case(416)
def ranges_of_no_use(p):
    for text in (
        "bytes=99999999999-",
        "bytes=a-b",
        "bytes=5-1",
        "lines=1-2",
        "bytes=1-2,4-5",
        "bytes=" + "1-2," * 500,
        "-",
        "bytes",
    ):
        yield p.ask("GET", "/v1/generalists/0", headers={"Range": text})


# Who asks -------------------------------------------------------------------------------------------------------------


@case(401)
def unsigned(p):
    for method, path in (("GET", "/v1/state"), ("GET", "/v1/manifests"), ("GET", "/v1/generalists/0"), ("POST", "/v1/updates"),
                         ("POST", "/v1/refusals"), ("PATCH", f"/v1/uploads/{'ab' * 32}"), ("POST", "/v1/join")):  # fmt: skip
        body = encode(p.bad.wish) if path == "/v1/join" else b"{}" if method != "GET" else b""
        yield p.ask(method, path, body, sign=False)


@case(401)
def signed_by_a_stranger(p):
    key = keys.new_key()
    yield p.ask("GET", "/v1/state", key=key, key_id=keys.device_id(keys.public_text(key)))
    yield p.ask("GET", "/v1/state", key=key)  # under another's name
    for name in ("", "x" * 4000, "../..", "é"[:0] + "e"):
        yield p.ask("GET", "/v1/state", key=key, key_id=name)


@case(401)
def signed_and_then_altered(p):
    for before, after in ((b"GET", b"HEAD"), (b"/state", b"/manifests"), (b"/v1", b"//v1"), (b"Host: 127", b"Host: 128"),
                          (b"/v1/state", b"/v1/state?x=1")):  # fmt: skip
        found = p.raw(p.head("GET", "/v1/state").replace(before, after, 1), after.decode()[:4])
        yield (found if found.status != 404 else Answer(401, {}, encode(Problem(error="404", message="not even a route"))))
    yield p.ask("POST", "/v1/updates", b'{"a":1}', send=b'{"a":2}')


@case(401)
def replayed(p):
    request = p.head("GET", "/v1/state")
    assert p.raw(request).status == 200
    yield p.raw(request)


@case(401)
def signed_for_another_start(p):
    yield p.ask("GET", "/v1/state", epoch="00" * 8)


@case(401)
def signed_long_ago_or_in_the_future(p):
    now = datetime.datetime.now(datetime.timezone.utc)
    for seconds in (-86400 * 365 * 40, -200, 200, 86400 * 365 * 100):
        yield p.ask("GET", "/v1/state", created=now + datetime.timedelta(seconds=seconds))


@case(401)
def signed_over_too_little(p):
    for missing in COVERED:
        body = None if missing == "content-digest" else b""
        head = p.head("GET", "/v1/state", body or b"", sign=False)
        request = Request("GET", f"https://{p.host}/v1/state", {})
        bad = p.bad
        p.sign(request, bad.key, bad.id, body, [name for name in COVERED if name != missing])
        lines = "".join(f"{k}: {v}\r\n" for k, v in request.headers.items()).encode()
        yield p.raw(head[:-2] + lines + b"\r\n")


@case(401)
def signatures_that_are_none(p):
    good = p.head("GET", "/v1/state").decode("latin-1")
    field = next(line for line in good.split("\r\n") if line.startswith("Signature-Input"))
    for text in ("", "()", "a=", "(" * 4000, "comigs=1", 'comigs=("x" "x")', "a=()," * 700,
                 'comigs=("@method");created=99999999999999999',
                 'comigs=("@query-param";name="x")', 'comigs=("@path";req)', 'comigs=("\\")', "comigs=:AAAA:"):  # fmt: skip
        yield p.raw(good.replace(field, f"Signature-Input: {text}").encode("latin-1"))


@case(401)
def two_signatures(p):
    request = Request("GET", f"https://{p.host}/v1/state", {})
    bad = p.bad
    p.sign(request, bad.key, bad.id, b"")
    p.sign(request, bad.key, bad.id, None, label="other", use_existing_digest=True, append_if_signature_exists=True)
    lines = "".join(f"{k}: {v}\r\n" for k, v in request.headers.items())
    yield p.raw(f"GET /v1/state HTTP/1.1\r\nHost: {p.host}\r\n{lines}\r\n".encode())


@case(403)
def a_device_that_was_removed(p):
    yield p.ask("GET", "/v1/state", member=p.revoked)
    yield p.post(b"{}", member=p.revoked)


# Joining --------------------------------------------------------------------------------------------------------------


@case(403)
def invitations_that_are_not_good(p):
    yield p.join(p.spent)
    yield p.join(keys.link("https://x:1", keys.new_code(), bytes(32)))


@case(401)
def joining_with_anothers_key(p):
    yield p.join(p.spent, signer=keys.new_key())
    yield p.join(p.spent, key_id="somebody")


@case(422)
def joining_with_a_key_that_is_none(p):
    for text in ("", "*", "AAAA", "é"):
        yield p.join(p.spent, key_id="x", public_key=text)


@case(403, 409, 422)
def joining_with_nonsense_to_train(p):
    link = p.__dict__.setdefault("unspent", p.invite())
    for found in (generalist({"x": (1,)}), generalist({}), generalist({f"generalist.{i}": (1,) for i in range(4097)}),
                  generalist({A: (1 << 62,) * 3000}), generalist({A: (-1,)}), generalist(SHAPES, "x"),
                  generalist(SHAPES, "cd" * 32)):  # fmt: skip
        yield p.join(link, generalist=found)
    for name in ("a b", "../x", "x" * 10_000, "\u202e", "good"):
        yield p.join(link, name=name)


# Messages -------------------------------------------------------------------------------------------------------------


@case(422)
def no_message(p):
    for path in ("/v1/updates", "/v1/refusals", "/v1/join"):
        for body in (b"", b" ", b"null", b"[]", b"0", b'"x"', b"{}", b"{", b"{}{}", b"\xef\xbb\xbf{}"):
            yield p.post(body, path)


@case(409)  # of an upload that is not there: the field itself is ignored
def fields_of_another_version(p):
    yield p.commit("ab" * 32, more=1)
    yield p.commit("ab" * 32, **{"x" * 100_000: 1})


@case(422)
def update_ids_that_are_none(p):
    for update_id in ("", "AB", "0x1", "ab\n", "\nab", "a" * 65, "a" * 100_000, 5, [], {}, True):
        yield p.commit("ab" * 32, update_id=update_id)


@case(422)
def wrong_types(p):
    for changes in ({"tokens": "1"}, {"tokens": 1.5}, {"tokens": True}, {"tokens": None}, {"sha256": 5}, {"sha256": []},
                    {"expected_round": {}}, {"validation_loss": "low"}, {"validation_loss": []}):  # fmt: skip
        yield p.commit(**{"sha256": "ab" * 32, **changes})


@case(422)
def numbers_without_end(p):
    for number in (1 << 53, 1 << 63, 1 << 64, -(1 << 63), 10**30, 10**4000):
        text = f"{number}" if number < 10**100 else "1" + "0" * 4000
        for name in ("tokens", "trained_from", "expected_round"):
            fields = {"sha256": "ab" * 32, "trained_from": 0, "tokens": 10, "expected_round": 1, name: 7777}
            yield p.post(json.dumps(fields).replace("7777", text).encode())
    for text in ("1e999", "NaN", "Infinity", "-1e400"):
        yield p.post(f'{{"round":0,"loss_before":1,"loss_after":{text}}}'.encode(), "/v1/refusals")


@case(422)
def deep_nesting(p):
    for body in (
        b"[" * 200_000,
        b'{"a":' * 80_000,
        b'{"sha256":' + b"[" * 200_000,
        b'{"generalist":{"tensors":{"a":' + b"[" * 200_000,
    ):
        for path in ("/v1/updates", "/v1/join"):
            yield p.post(body, path)


@case(422)
def texts_that_are_not_utf_8(p):
    for text in (b'"\xff"', b'"\xc0\x80"', b'"\\ud800"', b'"\xed\xa0\x80"', b'"\\u00"', b'"a\nb"'):
        yield p.post(b'{"sha256":' + text + b',"trained_from":0,"tokens":1,"expected_round":1}')


@case(409, 422)
def keys_twice(p):
    """The last one counts, as everywhere in JSON; it is checked like any other."""
    yield p.post(b'{"sha256":"x","sha256":"x","trained_from":0,"tokens":1,"expected_round":1}')
    fields = f'"sha256":"{"ab" * 32}","trained_from":0,"tokens":1'
    yield p.post(f'{{{fields},"expected_round":1,"expected_round":7}}'.encode())


@case(413)
def a_message_that_is_too_long(p):
    yield p.post(b" " * (512 * 1024 + 1))
    yield p.post(b" " * (1 << 20))


@case(422)
def a_message_of_half_a_megabyte(p):
    yield p.post(b'{"sha256":"' + b"a" * 500_000 + b'"}')
    yield p.post(b" " * 512 * 1024)
    yield p.post(b'{"a":1,' * 60_000)


@case(422)
def hashes_that_are_paths(p):
    for text in ("/dev/zero", "/dev/random", "..", ".", "", "../coordinator.db", "\0", "ab" * 32 + "\n", "AB" * 32, "ab" * 31):
        yield p.commit(text)


@case(409)
def rounds_that_are_not_open(p):
    for number in (-1, 0, 2, 10**9, (1 << 53) - 1):
        yield p.commit("ab" * 32, expected_round=number)
    for number in (-1, 1, 10**9):
        yield p.commit("ab" * 32, trained_from=number)
    for number in (-1, 0, 1, 10**9):
        yield p.post(json.dumps({"round": number, "loss_before": 1.0, "loss_after": 2.0}).encode(), "/v1/refusals")


@case(422)
def counts_below_zero(p):
    yield p.commit("ab" * 32, tokens=-1)
    yield p.commit("ab" * 32, expected_round=-2)


@case(409)
def an_update_that_was_not_uploaded(p):
    yield p.commit("cd" * 32)


# Uploads --------------------------------------------------------------------------------------------------------------


@case(415)
def uploads_of_another_type(p):
    for kind in (None, "application/json", "multipart/form-data; boundary=x", "application/x-pickle", "x" * 1000, ";;;"):
        yield p.ask("PATCH", f"/v1/uploads/{'ab' * 32}", b"x", {"Upload-Offset": "0", "Content-Type": kind})


@case(400, 409, 413)
def offsets_that_are_none(p):
    for text in (
        None,
        "",
        "x",
        "-",
        "--5",
        "-1",
        "1.5",
        "1e3",
        "1",
        "9" * 15,
        "9" * 16,
        "9" * 3000,
        "0x0",
        "٣".encode().decode("latin-1"),
    ):
        yield p.ask("PATCH", f"/v1/uploads/{'ab' * 32}", b"x", {"Upload-Offset": text, "Content-Type": OFFSET})


@case(413)
def more_than_an_update_has(p):
    for offset, size in ((0, (1 << 20) + 1), (1 << 20, 100_000)):
        yield p.ask("PATCH", f"/v1/uploads/{'ab' * 32}", bytes(size), {"Upload-Offset": offset, "Content-Type": OFFSET})
    yield p.submit(np.lib.format.magic(1, 0) + bytes(2_000_000))


def good():
    return {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}


def with_array(name, array):
    return wire.encode({**good(), name: array})


def with_header(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


A = next(iter(SHAPES))
SIZE = wire.encoded_size(compress.table(SHAPES, "float32"))


def filled(text):
    """A header of one's own, and as many bytes behind it as an update has."""
    return with_header(text, bytes(max(0, SIZE - 8 - len(text))))


@case(409)
def a_truncated_update(p):
    data = wire.encode(good())
    for size in (1, 7, 8, 100, SIZE - 1):
        yield p.submit(data[:size])


@case(422)
def an_upload_that_is_not_what_was_announced(p):
    sha256, bad = hashlib.sha256(str(time.monotonic_ns()).encode()).hexdigest(), p.bad
    for start in (0, 1 << 20):
        headers = {"Upload-Offset": str(start), "Content-Type": OFFSET}
        data = bytes(min(1 << 20, SIZE - start))
        assert p.ask("PATCH", f"/v1/uploads/{sha256}", data, headers, member=bad).status == 204
    yield p.commit(sha256, bad)


@case(422)
def numbers_that_are_none(p):
    for value in (np.nan, np.inf, -np.inf):
        array = np.ones(SHAPES[A], np.float32)
        array[3, 5] = value
        yield p.submit(with_array(A, array))


@case(422)
def numbers_that_are_too_large(p):
    yield p.submit(with_array(A, np.full(SHAPES[A], 65, np.float32)))
    yield p.submit(with_array(A, np.full(SHAPES[A], -3e38, np.float32)))


@case(409, 422)
def other_shapes_types_and_names(p):
    yield p.submit(with_array(A, np.ones((512, 256), np.float32)))
    yield p.submit(with_array(A, np.ones((256, 1024), np.float16)))
    changed = good()
    changed["generalist.blk.0.ffn_up.lora_c"] = changed.pop(A)
    yield p.submit(wire.encode(changed))
    yield p.submit(wire.encode({A: good()[A]}))


@case(422)
def a_header_that_says_more_than_there_is(p):
    for length in (1 << 63, (1 << 64) - 1, 60_000_000, SIZE, 1 << 31):
        yield p.submit(struct.pack("<Q", length) + bytes(SIZE - 8))


@case(422)
def headers_that_are_no_json(p):
    for text in (b"\xff" * 100, b"{", b"[" * 60_000, b'{"a":' * 10_000, b"1" * 60_000, b'{"\\ud800":{}}', b"\0" * 50_000, b"[1]"):
        yield p.submit(filled(text))


@case(422)
def a_bomb_of_metadata(p):
    yield p.submit(filled(b'{"__metadata__":{"x":"' + b"x" * 60_000 + b'"}}'))
    yield p.submit(filled(json.dumps({"__metadata__": {str(i): "x" for i in range(4000)}}).encode()))


@case(413, 422)
def tensors_of_nothing(p):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    yield p.submit(filled(json.dumps({str(i): entry for i in range(1000)}).encode()))
    if not hasattr(p, "many"):
        p.many = with_header(json.dumps({str(i): entry for i in range(100_000)}).encode())
    yield p.submit(p.many)


@case(422)
def keys_twice_in_a_header(p):
    yield p.submit(filled(b'{"a":{},"a":{}}'))
    yield p.submit(filled(b'{"a":{"dtype":"F32","dtype":"F16"}}'))


@case(422)
def headers_that_lie(p):
    data = wire.encode(good())
    size = 8 + int.from_bytes(data[:8], "little")
    for before, after in (
        (b"[0,524288]", b"[0,524284]"), (b"[256,512]", b"[131072,1]"), (b'"F32"', b"[]"), (b'"F32"', b'{"x":1}'),
        (b"[256,512]", b"[1e400]"), (b"[256,512]", b"[-256,-512]"), (b'"dtype"', b'"type"'),
    ):  # fmt: skip
        yield p.submit(filled(data[8:size].replace(before, after)))


@case(422)
def another_kind_of_file(p):
    for magic in (b"GGUF\x03\0\0\0", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x04\x95", gzip.compress(b"x"), b"\x7fELF"):
        yield p.submit(magic.ljust(SIZE, b"\0"))


# The tests ------------------------------------------------------------------------------------------------------------


def measured(place, function):
    """What a case answers, the CPU seconds and the bytes of memory that each of its requests takes."""
    place.reset_peak()
    before, memory = place.cpu(), place.memory("VmRSS")
    answers = list(function(place))
    time.sleep(0.01)
    return answers, (place.cpu() - before) / len(answers), place.memory("VmHWM") - memory


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_with_a_sentence_and_costs_little(place, name):
    function, statuses, is_problem = CASES[name]
    list(itertools.islice(function(place), 3))  # warm: what is loaded or allocated once
    before, runs = place.ledger(), [measured(place, function) for _ in range(REPEATS)]
    for answer in runs[0][0]:
        assert answer.status in statuses, answer
        if answer.status >= 400 and (is_problem or answer.headers.get("content-type", "").startswith("application/json")):
            if answer.headers.get("content-type") and not answer.body:
                continue  # HEAD
            found = decode(answer.body, Problem)
            assert found.error
            assert 10 < len(found.message) < 500, found.message
            assert "\n" not in found.message
            assert "Error" not in found.message
    assert place.ledger() == before
    cpu, memory = (statistics.median(run[column] for run in runs) for column in (1, 2))
    TABLE[name] = (len(runs[0][0]), cpu, memory)
    assert cpu <= MAX_CPU, f"{cpu * 1000:.0f} ms"
    assert memory <= MAX_RSS, f"{memory / 1e6:.1f} MB"


def test_after_all_of_it_a_good_device_is_served_and_the_log_has_no_failure(place, tmp_path):
    for _ in range(15):
        place.bad.push(place.update(3.0))
    place.good.push(place.update(3.0))
    admin.call(place.coordinator.data, "test", "revoke", name=Member(place.invite(), shapes=SHAPES).joined.name)
    for device in admin.call(place.coordinator.data, "test", "devices")["devices"]:
        if device["name"].startswith("device-") and not device["revoked"]:
            admin.call(place.coordinator.data, "test", "revoke", name=device["name"])
    number, found = place.good.pull(tmp_path, at_least=1)
    assert number == 1
    for array in found.values():
        np.testing.assert_array_equal(array, np.full(array.shape, 4.0, np.float32))
    log = place.log.read_text()
    for word in ("a request failed", "Traceback", "Unhandled", "Error handling"):
        assert word not in log, log[-3000:]


def test_there_are_forty_classes_at_least_and_this_is_what_they_cost():
    assert len(CASES) >= 40
    print(f"\n{'class':48} requests  CPU ms  peak MB")
    for name, (count, cpu, memory) in sorted(TABLE.items(), key=lambda row: -row[1][1]):
        print(f"{name.replace('_', ' '):48} {count:8} {cpu * 1000:7.1f} {memory / 1e6:8.1f}")


# Slow clients ---------------------------------------------------------------------------------------------------------


def seconds_until_closed(line, piece, limit):
    """How long the coordinator lets somebody send a byte a second."""
    start = time.monotonic()
    line.socket.settimeout(1.0)
    while time.monotonic() - start < limit:
        try:
            line.socket.sendall(piece)
            if not line.socket.recv(1 << 16):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    line.close()
    return time.monotonic() - start


@pytest.mark.torture
def test_slow_headers_are_not_waited_for(place):
    line = Line(place.port)
    line.send(b"GET /v1/state HTTP/1.1\r\nHost: x\r\nX: ")
    assert seconds_until_closed(line, b"x", 30) < 20


@pytest.mark.torture
def test_a_slow_handshake_is_not_waited_for(place):
    line = Line(place.port, tls=False)
    assert seconds_until_closed(line, b"\x16", 30) < 20


@pytest.mark.torture
def test_a_slow_body_is_not_waited_for(place):
    line = Line(place.port)
    line.send(place.head("POST", "/v1/updates", b" " * 1000))
    assert seconds_until_closed(line, b" ", 90) < 60


@pytest.mark.torture
def test_two_hundred_slow_connections_keep_nobody_waiting(place):
    lines = [Line(place.port) for _ in range(200)]
    for line in lines:
        line.send(b"GET /v1/state HTTP/1.1\r\nHost: x\r\nX: ")
    waits = []
    for _ in range(50):
        start = time.monotonic()
        place.good.remote.state()
        waits.append(time.monotonic() - start)
    for line in lines:
        line.close()
    assert sorted(waits)[49] < 1.0


def test_commits_are_read_by_the_device_as_they_are_written():
    wish = Commit(sha256="ab" * 32, trained_from=0, tokens=1, expected_round=1)
    assert decode(encode(wish), Commit) == wish
