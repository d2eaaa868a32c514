"""What must hold of a coordinator after any crash, checked against what its devices know.

    Books     every update that a device ever tried to bring, and every receipt that one ever got
    Trainer   a device with an outbox: it brings an update until there is a receipt, then makes the next one
    check     the sentences that are not true of a coordinator's folder; none, if all is well

The means are computed here once more, in extended precision and without the coordinator's code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import tempfile
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from comigs_edge.fleet.client import Offline, RemoteRefused
from coordinator.ledger.chain import KEPT_GENERALISTS
from coordinator.protocol import keys
from coordinator.protocol.aggregate import MAX_ABSOLUTE
from coordinator.protocol.messages import Commit, Refusal, SignedManifest
from tests.coordinator.rig import Member, random_arrays

SHAPES = {"generalist.blk.0.ffn_up.lora_a": (64, 1024), "generalist.blk.0.ffn_up.lora_b": (1024, 80)}  # 590 kB: 3 pieces
LATER = ("already_counted", "stale_round", "wrong_digest", "incomplete")  # refusals after which a device comes again


@dataclass
class Tried:
    """An update; its numbers come again from the seed."""

    device: str
    trained_from: int
    seed: int


@dataclass
class Books:
    """What the devices of a fleet know; `published` and `counted` are what earlier checks saw, which must never change."""

    shapes: dict = field(default_factory=lambda: SHAPES)
    tried: dict = field(default_factory=dict)  # sha256 -> Tried
    acked: dict = field(default_factory=dict)  # sha256 -> round of the receipt
    published: dict = field(default_factory=dict)  # round -> manifest's bytes
    counted: dict = field(default_factory=dict)  # round -> sha256 of its updates
    refused: dict = field(default_factory=dict)  # code -> how often a device had to come again
    newest: dict = field(default_factory=dict)  # round -> arrays, of the last few
    seed: int = 0
    means: int = 0  # generalists that were compared with their updates' mean
    unseen: int = 0  # ... that were deleted again before they could be
    lock: threading.Lock = field(default_factory=threading.Lock)

    def new_seed(self):
        """A number that no update had before."""
        with self.lock:
            self.seed += 1
            return self.seed


class Trainer:
    """A device that never waits; patience is none, so that an interrupted request is an interrupted request.

    `round` is that of its last receipt.
    """

    def __init__(self, link, books, name=None):
        self.books, self.pending, self.round = books, None, -1
        self.member = Member(link, name, books.shapes, patience=5.0)
        self.member.remote.patience = 0.01

    def newest(self, state):
        """The newest generalist's number; -1 before the first."""
        return -1 if state.newest is None else keys.open_manifest(state.newest, self.member.joined.signing_key).round

    def step(self):
        """Brings the update that waits, or a new one. Whether there is a receipt; raises `Offline`."""
        state = self.member.remote.state()
        if self.pending is None:
            self._make(self.newest(state))
        payload, sha256, trained_from = self.pending
        try:
            assert self.member.remote.upload(payload) == sha256
            receipt = self.member.remote.commit(
                Commit(sha256=sha256, trained_from=trained_from, tokens=1000, expected_round=state.open_round)
            )
        except RemoteRefused as error:
            if error.code == "wrong_generalist" and trained_from == -1:
                self.pending = None  # another device's first generalist came first
            elif error.code not in LATER:
                raise
            self.books.refused[error.code] = self.books.refused.get(error.code, 0) + 1
            return False
        self.books.acked[sha256] = self.round = receipt.round
        self.pending = None
        return True

    def _make(self, trained_from):
        seed = self.books.new_seed()
        payload = self.member.encoded(random_arrays(seed, self.books.shapes), trained_from)
        sha256 = hashlib.sha256(payload).hexdigest()
        self.books.tried[sha256] = Tried(self.member.id, trained_from, seed)
        self.pending = payload, sha256, trained_from

    def is_at_rest(self):
        """Whether every closed round is published."""
        state = self.member.remote.state()
        return self.newest(state) == state.open_round - 1

    def refuse(self):
        """Says that the newest generalist is bad."""
        number = self.newest(self.member.remote.state())
        if number >= 1:
            with contextlib.suppress(RemoteRefused):  # there is a newer one already
                self.member.remote.refuse(Refusal(round=number, loss_before=1.0, loss_after=2.0))


def settle(trainers, seconds=10.0):
    """Every device gets a receipt, all of the same round, and nothing waits any more: the devices can go on."""
    end, fresh = time.monotonic() + seconds, set(trainers)
    while True:
        last = max(trainer.round for trainer in trainers)
        behind = [each for each in trainers if each in fresh or each.pending or each.round < last]
        try:
            for trainer in behind:
                if trainer.step():
                    fresh.discard(trainer)
            if not behind and trainers[0].is_at_rest():
                return
        except Offline:
            time.sleep(1.0)  # a device that has asked too often gets ten requests a second
        assert time.monotonic() < end, f"the devices cannot go on: {trainers[0].books.refused}"


def check(data, books, signing_key, devices):
    """The sentences that should hold and do not, of a coordinator that has started again."""
    database = _at_rest_database(data)
    try:
        rows = [dict(row) for row in database.execute("SELECT * FROM updates")]
        rounds = {row["number"]: dict(row) for row in database.execute("SELECT * FROM rounds")}
    finally:
        database.close()
    found = _receipts(books, rows)
    found += _payloads(data, rows, rounds, devices)
    return found + _generalists(data, books, rows, rounds, signing_key)


def _at_rest_database(data):
    """The ledger, once it is sound and the rounds that the crash left closed are published; raises where that never comes."""
    end = time.monotonic() + 10
    waiting = "SELECT count(*) FROM rounds WHERE closed IS NOT NULL AND published IS NULL"
    stray = "SELECT count(*) FROM updates WHERE round NOT IN (SELECT number FROM rounds)"
    while True:
        counts = "it cannot be read"
        with contextlib.suppress(sqlite3.DatabaseError):  # it was copied in the middle of a write
            database = _copy(data)
            counts = [database.execute(query).fetchone()[0] for query in (waiting, stray)]
            is_sound = database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"  # not copied in the middle of a write
            counts += [] if is_sound else ["integrity_check fails"]
            if not any(counts):
                return database
            database.close()
        if time.monotonic() > end:
            raise AssertionError(f"rounds that are closed and not published, updates of no round: {counts}")
        time.sleep(0.01)


def _copy(data):
    """The ledger of a running coordinator, which nobody else may open."""
    with tempfile.TemporaryDirectory() as folder:
        for path in data.glob("coordinator.db*"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(path, folder)
        database = sqlite3.connect(":memory:", isolation_level=None)
        with contextlib.closing(sqlite3.connect(f"{folder}/coordinator.db")) as copy:
            copy.backup(database)
    database.row_factory = sqlite3.Row
    return database


def _receipts(books, rows):
    by_sha = {}
    for row in rows:
        by_sha.setdefault(row["sha256"], []).append(row)
    found = [f"lost: {sha[:8]}, receipt for round {number}" for sha, number in books.acked.items() if sha not in by_sha]
    for sha, entries in by_sha.items():
        tried = books.tried.get(sha)
        if len(entries) > 1:
            found.append(f"doubled: {sha[:8]} in rounds {[entry['round'] for entry in entries]}")
        if tried is None or (entries[0]["device"], entries[0]["trained_from"]) != (tried.device, tried.trained_from):
            found.append(f"invented: {sha[:8]} was never brought so")
    return found


def _payloads(data, rows, rounds, devices):
    needed = {row["sha256"] for row in rows if rounds[row["round"]]["published"] is None}
    published = sorted(number for number, row in rounds.items() if row["published"] is not None)
    needed |= {rounds[number][name] for number in published[-KEPT_GENERALISTS:] for name in ("sha256", "change_sha256")} - {None}
    end = time.monotonic() + 3
    while (here := {path.name: path for path in (data / "payloads").iterdir()}).keys() - needed and time.monotonic() < end:
        time.sleep(0.02)  # what a round that was published just now needed is deleted behind that
    found = [f"missing: payload {sha[:8]}" for sha in needed - here.keys()]
    found += [f"orphan: payload {sha[:8]}" for sha in here.keys() - needed]
    for name in needed & here.keys():
        if hashlib.sha256(here[name].read_bytes()).hexdigest() != name:
            found.append(f"damaged: payload {name[:8]}")
    uploads = [path.name for path in (data / "uploads").iterdir()]
    return found + [f"orphan: upload {name[:8]}" for name in uploads if name.split("-")[0] not in devices]


def _generalists(data, books, rows, rounds, signing_key):
    found, previous = [], ""
    for number in sorted(number for number, row in rounds.items() if row["published"] is not None):
        row, shas = rounds[number], sorted(entry["sha256"] for entry in rows if entry["round"] == number)
        signed = SignedManifest(manifest=row["manifest"], signature=row["signature"])
        manifest = keys.open_manifest(signed, signing_key)
        if (manifest.round, manifest.previous, manifest.sha256) != (number, previous, row["sha256"]):
            found.append(f"chain: round {number} does not follow round {number - 1}")
        previous = keys.chain_hash(signed)
        if books.published.setdefault(number, row["manifest"]) != row["manifest"]:
            found.append(f"changed: generalist {number} was published twice")
        if books.counted.get(number) is None:
            found += _mean(data, books, number, row, [entry for entry in rows if entry["round"] == number])
        if books.counted.setdefault(number, shas) != shas:
            found.append(f"changed: the updates of round {number}")
    return found


def _mean(data, books, number, row, updates):
    """Compares a generalist with the mean of the updates that the ledger counts in its round."""
    path = data / "payloads" / row["sha256"]
    before = books.newest.get(number - 1) if number else {n: np.zeros(s, np.float32) for n, s in books.shapes.items()}
    arrays = books.newest[number] = _read(path, books.shapes) if path.exists() else None
    books.newest.pop(number - 12, None)
    if arrays is None or before is None:
        books.unseen += 1
        return []
    books.means += 1
    if row["rolled_back_to"] is not None:
        same = books.newest.get(row["rolled_back_to"])
        return [] if same and all((arrays[n] == same[n]).all() for n in arrays) else [f"roll-back: generalist {number}"]
    total = sum(entry["weight"] for entry in updates)
    found = [f"weight: {entry['weight']}" for entry in updates if entry["weight"] not in _weights(number, entry)]
    change = {name: np.zeros(shape, np.longdouble) for name, shape in books.shapes.items()}
    for entry in updates:
        for name, array in random_arrays(books.tried[entry["sha256"]].seed, books.shapes).items():
            change[name] += array.astype(np.longdouble) * entry["weight"]
    for name, array in arrays.items():
        mean = change[name] / total
        rounding = np.spacing(abs(mean).astype(np.float16)).astype(np.float32) if number else 0
        wanted = np.clip(before[name].astype(np.longdouble) + mean, -MAX_ABSOLUTE, MAX_ABSOLUTE)  # a thousand rounds come so far
        if (abs(array - wanted) > 2.0**-28 + np.spacing(abs(array)) + rounding).any():
            found.append(f"mean: generalist {number} is not the mean of its {len(updates)} updates")
    return found


def _weights(number, entry):
    """What an update may weigh: 1 / sqrt(1 + generalists behind), where the newest was at most the round's predecessor."""
    most = max(0, number - 1 - entry["trained_from"])
    return {round(65536 / (1 + stale) ** 0.5) for stale in range(most + 1)}


def _read(path, shapes):
    """The arrays of a payload, by the format's description: a length, a JSON header, float32 numbers."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table, arrays = json.loads(data[8 : 8 + length]), {}
    for name, shape in shapes.items():
        start, stop = table[name]["data_offsets"]
        arrays[name] = np.frombuffer(data[8 + length :][start:stop], "<f4").reshape(shape)
    return arrays
