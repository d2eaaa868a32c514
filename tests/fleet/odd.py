"""A coordinator's whole side of an exchange, right or odd: what it says is drawn from a seed, and counted by kind."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter

import numpy as np

from comigs_edge.fleet.books import Books
from comigs_edge.fleet.exchange import Exchange
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.membership import Membership
from comigs_edge.home.folder import Home
from coordinator.protocol import compress, keys, wire
from coordinator.protocol.aggregate import add_change
from coordinator.protocol.messages import Joined, Manifest, Receipt, Restoration, Settings, State, encode
from tests.fleet.hostile import http

SHAPES = {"generalist.blk.0.ffn_gate.lora_a": (2, 16), "generalist.blk.0.ffn_gate.lora_b": (8, 2)}
BASE = "ab" * 32
SETTINGS = Settings(local_steps=2, update_format="float16", averaging="separate")
UNKNOWN = {"later": {"a": [1, None, "ü"]}}  # a field of a version to come
STATUSES = (99, 200, 204, 206, 302, 400, 401, 403, 404, 408, 409, 413, 416, 418, 426, 429, 500, 503, 507, 999)
CODES = ("wrong_offset", "stale_epoch", "bad_signature", "stale_round", "bad_message", "too_stale", "wrong_generalist",
         "bad_update", "already_counted", "disk_full", "incomplete", "revoked", "no_generalist", "nobody knows")  # fmt: skip
HEADERS = ("Upload-Offset", "Retry-After", "Content-Range", "Location", "Content-Encoding", "Transfer-Encoding", "Connection",
           "Date", "Set-Cookie")  # fmt: skip
VALUES = (None, True, -1, 0, 1, 7, 2**53, -(10**30), 1e308, -0.5, "", "x" * 300, "²", "../../..", "\ud800", "\0", "0" * 64, [],
          [None], {}, {"a": {}}, "float32", "int8", "pickle")  # fmt: skip


class Fleet:
    """Answers one device as a coordinator does: `reply` to a request is status, headers and body. An update makes a round."""

    def __init__(self):
        self.key, self.links, self.files, self.uploads, self.counted = keys.new_key(), [], {}, {}, []
        self.note = None
        self.last = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        self.publish(0.0)

    def publish(self, value, **fields):
        """The next generalist: `value` more in each weight. `fields` are put in place of the manifest's own."""
        number, change = (
            len(self.links),
            compress.pack({name: np.full(s, value, np.float32) for name, s in SHAPES.items()}, "float16"),
        )
        self.last = add_change(self.last, compress.unpack(change, SHAPES, "float16"))
        whole, part = wire.encode(self.last), wire.encode(change)
        manifest = {
            "fleet": "fleet", "round": number, "sha256": hashlib.sha256(whole).hexdigest(), "size": len(whole),
            "previous": keys.chain_hash(self.links[-1]) if self.links else "", "base_sha256": BASE, "devices": 1,
            "change_sha256": hashlib.sha256(part).hexdigest(), "change_size": len(part),
        }  # fmt: skip
        self.files |= {f"/v1/generalists/{number}": whole, f"/v1/changes/{number}": part}
        self.links.append(keys.sign_manifest(self.key, Manifest(**(manifest | fields))))

    def restore(self, number, to):
        """The note of a restoration."""
        last = keys.chain_hash(self.links[to]) if 0 <= to < len(self.links) else ""
        self.note = keys.sign_restoration(self.key, Restoration(fleet="fleet", number=number, round=to, manifest_hash=last))

    def state(self):
        return State(
            open_round=len(self.links), newest=self.links[-1], has_contributed=False, settings=SETTINGS, next_poll_seconds=5.0,
            counted=self.counted[-8:], restored=self.note,
        )  # fmt: skip

    def reply(self, request):
        path, _, query = request.path.partition("?")
        name = path.rpartition("/")[2]
        if path in self.files:
            data, begin = self.files[path], int(request.fields.get("range", "bytes=0-")[6:-1])
            return (
                (206, [("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")], data[begin:])
                if begin
                else (200, [], data)
            )
        if path.startswith("/v1/uploads/"):
            self.uploads[name] = self.uploads.get(name, b"") + request.body
            return 204, [("Upload-Offset", len(self.uploads[name]))], b""
        if path == "/v1/manifests":
            return 200, [], b"[" + b",".join(map(encode, self.links[int(query[6:]) + 1 :])) + b"]"
        if path == "/v1/updates":
            self.counted.append(json.loads(request.body)["update_id"])
            self.publish(0.5)
            return 200, [], encode(Receipt(round=len(self.links) - 1, weight=1.0, state=self.state()))
        if path == "/v1/join":
            signing = keys.public_text(self.key)
            return 200, [], encode(Joined(fleet="fleet", device="d" * 32, name="d", signing_key=signing, settings=SETTINGS))
        return 200, [], encode(self.state()) if path == "/v1/state" else b"{}"


class Odd:
    """What `Hostile` answers: as the fleet does, or odd with this probability. `kinds` counts what was answered."""

    def __init__(self, rng, share=0.35):
        self.rng, self.share, self.fleet, self.kinds = rng, share, Fleet(), Counter()
        self.ways = [getattr(self, name) for name in dir(self) if name.startswith("odd_")]

    def __call__(self, request):
        self.odd_world() if self.rng.random() < self.share / 3 else None
        status, headers, body = self.fleet.reply(request)
        way = self.rng.choice(self.ways) if self.rng.random() < self.share else None
        self.kinds["right" if way is None else way.__name__[4:]] += 1
        return http(body, status, headers) if way is None else way(status, headers, body) or http(body, status, headers)

    def odd_world(self, *_):
        """The fleet itself is another, rightly signed."""
        rng, fleet = self.rng, self.fleet
        change = rng.choice(["fields", "bytes", "nan", "back", "restored", "fewer", "again", "counted"])
        size = len(fleet.links)
        if change == "fields":
            values = {"fleet": "other", "round": rng.choice([-1, 0, size + 1, 2**53 - 1]), "sha256": "0" * 64,
                      "size": rng.choice([0, 1, 10**15]), "previous": "x", "base_sha256": "c" * 64,
                      "rolled_back_to": rng.choice([-1, 0, size, 10**15]),
                      "change_size": rng.choice([0, 10**12]), "change_sha256": "0" * 64}  # fmt: skip
            names = rng.sample(sorted(values), rng.randint(1, 2))
            fleet.publish(0.1, **{name: values[name] for name in names})
        elif change in ("bytes", "nan"):
            whole = bytearray(wire.encode(fleet.last))
            whole[-4:] = np.float32("nan").tobytes() if change == "nan" else whole[-4:]
            whole[12] ^= change == "bytes"
            fleet.publish(0.1, sha256=hashlib.sha256(whole).hexdigest())
            fleet.files[f"/v1/generalists/{size}"] = bytes(whole)
        elif change == "back":
            fleet.publish(-0.5, rolled_back_to=max(0, size - 2))
        elif change == "restored":
            fleet.restore(rng.choice([1, 2, 10**15]), rng.choice([-1, 0, size - 1, size, 10**15]))
        elif change == "fewer":
            del fleet.links[rng.randint(1, size) :]
        elif change == "again":
            fleet.key = keys.new_key()
        else:
            fleet.counted = ["a" * 64, "", *fleet.counted[:1]]

    def odd_unknown(self, status, headers, body):
        return http(body.replace(b"{", json.dumps(UNKNOWN).encode()[:-1] + b",", 1), status, [*headers, ("X-Later", "1")])

    def odd_value(self, status, headers, body):
        """One field of the message has another value, or none."""
        try:
            message = json.loads(body)
        except ValueError:
            return None
        places = list(_places(message))
        if not places:
            return None
        table, key = self.rng.choice(places)
        if self.rng.random() < 0.2:
            del table[key]
        else:
            table[key] = self.rng.choice(VALUES)
        return http(json.dumps(message).encode("utf-8", "surrogatepass"), status, headers)

    def odd_bytes(self, status, headers, body):
        """Some bytes of the body are others, or the answer's are."""
        whole = bytearray(body or b"x")
        for _ in range(self.rng.randint(1, 3)):
            whole[self.rng.randrange(len(whole))] = self.rng.randrange(256)
        return http(bytes(whole), status, headers) if self.rng.random() < 0.8 else self.rng.randbytes(self.rng.randrange(200))

    def odd_length(self, status, headers, body):
        """It ends early or late, or claims to."""
        claim = self.rng.choice([0, -1, 1, len(body) + 1, 10**15, "²", ""])
        other = self.rng.choice([body, body[: len(body) // 2], body * 2, b""])
        return http(other, status, [*headers, ("Content-Length", claim)], length=False)

    def odd_status(self, _, headers, body):
        code, status = self.rng.choice(CODES), self.rng.choice(STATUSES)
        refusal = json.dumps({"error": code, "message": "no", **UNKNOWN}).encode()
        return http(self.rng.choice([refusal, refusal, body, b""]), status, headers)

    def odd_header(self, status, headers, body):
        value = self.rng.choice(["", "0", "1", "-1", "9" * 12, "²", "gzip", "chunked", "bytes 7-8/9", "//[", "x" * 9000])
        name = self.rng.choice(HEADERS)
        return http(body, status, [*((k, v) for k, v in headers if k != name), (name, value)])

    def odd_silence(self, status, headers, body):
        """Nothing, or a word at a time for longer than anybody waits."""
        return b"" if self.rng.random() < 0.6 else _drip(http(body, status, headers))

    def odd_other(self, *_):
        """The answer to something else."""
        return http(self.rng.choice([*self.fleet.files.values(), encode(self.fleet.state()), b"[]", b"null", b"[" * 9000]))


def _places(message):
    """Where the values of a message are: each table or list, and a key of it."""
    for key, value in message.items() if isinstance(message, dict) else enumerate(message if isinstance(message, list) else []):
        yield message, key
        yield from _places(value)


def _drip(data):
    for index in range(300):
        yield data[index : index + 1] or b" "
        time.sleep(0.02)


class Device:
    """A tiny home in the fleet of a `Fleet`, that speaks to a `Hostile`."""

    def __init__(self, root, hostile, fleet, patience=1.0):
        self.folder, self.transport = FleetFolder(Home(root)), hostile.device(patience)
        self.local = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        self.folder.save_membership(Membership(
            address=hostile.address, pin=hostile.pin.hex(), fleet="fleet", device="d" * 32, name="d", joined="",
            signing_key=keys.public_text(fleet.key), local_steps=2, update_format="float16", averaging="separate",
        ))  # fmt: skip
        self.open()

    def open(self):
        """As a new process would."""
        initial = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        self.books = Books(self.folder, SHAPES, lambda: initial, BASE, 0.1)

    def exchange(self, learned=0.25, judge=None):
        """Learns a little, and exchanges."""
        self.local = {name: array + np.float32(learned) for name, array in self.local.items()}
        outcome = Exchange(self.books, self.transport).run(self.local, 10 if learned else 0, judge)
        self.local = outcome.generalist or self.local
        return outcome
