"""The published generalists: a signed chain of manifests, made from closed rounds, turned back where devices refuse.

Making one takes a second and no ledger, so it is cut out (`make`) and may run in another thread; it is a pure function of
files that do not change, so after a crash it is simply done again, with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.ledger.database import Database
from coordinator.ledger.members import Device
from coordinator.ledger.payloads import Payloads
from coordinator.protocol import compress, keys, rounds, wire
from coordinator.protocol.aggregate import aggregate
from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import Generalist, Manifest, Refusal, SignedManifest

Shapes = dict[str, tuple[int, ...]]
KEPT_GENERALISTS = 10  # payloads; all manifests are kept


class Job(NamedTuple):
    """A closed round whose generalist is to be made."""

    round: int
    generalist: Generalist
    before: str | None  # SHA-256 of the generalist before
    updates: list[dict[str, Any]]  # rows of the ledger


class Chain:
    """The generalists of a fleet."""

    def __init__(
        self, database: Database, payloads: Payloads, signing_key: Ed25519PrivateKey, fleet: str, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        self._database, self._payloads, self._clock, self._fleet = database, payloads, clock, fleet
        self._signing_key = signing_key
        self.collect()

    @property
    def signing_key(self) -> str:
        """The public key that manifests are checked with."""
        return keys.public_text(self._signing_key)

    @property
    def newest_number(self) -> int:
        """-1 before the first generalist."""
        found = self._database.value("SELECT max(number) FROM rounds WHERE published IS NOT NULL")
        return -1 if found is None else int(found)

    @property
    def newest(self) -> SignedManifest | None:
        """The newest generalist's manifest."""
        found = self.manifests(self.newest_number - 1)
        return found[-1] if found else None

    def manifests(self, after: int) -> list[SignedManifest]:
        """The chain from the generalist behind this number on, a thousand at most."""
        found = self._database.rows(
            "SELECT manifest, signature FROM rounds WHERE number > ? AND published IS NOT NULL ORDER BY number LIMIT 1000",
            after,
        )  # fmt: skip
        return [SignedManifest(**row) for row in found]

    # From closed rounds -------------------------------------------------------------------------------------------

    def next_job(self, generalist: Generalist | None) -> Job | None:
        """The oldest closed round without a generalist."""
        row = self._database.row("SELECT * FROM rounds WHERE closed IS NOT NULL AND published IS NULL ORDER BY number")
        if row is None or generalist is None:
            return None
        before = self._database.value("SELECT sha256 FROM rounds WHERE number = ?", row["number"] - 1)
        updates = self._database.rows("SELECT * FROM updates WHERE round = ? ORDER BY device", row["number"])
        return Job(row["number"], generalist, before, updates)

    def publish(self, job: Job, sha256: str, size: int) -> None:
        """Enters a generalist that `make` has written: the next link of the chain."""
        with self._database.transaction():
            self._enter(job.generalist, job.round, sha256, size, len(job.updates), None)
        self.collect()

    def _enter(
        self, generalist: Generalist, number: int, sha256: str, size: int, devices: int, rolled_back_to: int | None
    ) -> None:  # fmt: skip
        newest = self.newest
        manifest = Manifest(
            fleet=self._fleet, round=number, sha256=sha256, size=size, devices=devices, rolled_back_to=rolled_back_to,
            previous=keys.chain_hash(newest) if newest else "", base_sha256=generalist.base_sha256,
        )  # fmt: skip
        signed = keys.sign_manifest(self._signing_key, manifest)
        self._database.run(
            "UPDATE rounds SET published = ?, sha256 = ?, size = ?, devices = ?, manifest = ?, signature = ?, "
            "rolled_back_to = ? WHERE number = ?",
            self._clock(), sha256, size, devices, signed.manifest, signed.signature, rolled_back_to, number,
        )  # fmt: skip

    def collect(self) -> None:
        """Deletes payloads that nothing refers to any more: updates of published rounds, old generalists."""
        wanted = self._database.rows(
            "SELECT sha256 FROM (SELECT sha256 FROM rounds WHERE published IS NOT NULL ORDER BY number DESC LIMIT ?) UNION "
            "SELECT updates.sha256 FROM updates JOIN rounds ON number = round WHERE published IS NULL",
            KEPT_GENERALISTS,
        )  # fmt: skip
        self._payloads.collect({row["sha256"] for row in wanted}, self._clock())

    # Turned back --------------------------------------------------------------------------------------------------

    def refuse(self, device: Device, refusal: Refusal, active: int, generalist: Generalist | None) -> dict[str, Any]:
        """A device keeps its old generalist; where a third of the fleet does, the one before is published again."""
        newest = self.newest_number
        known = self._database.value("SELECT 1 FROM refusals WHERE device = ? AND round = ?", device.id, refusal.round)
        if known is None:
            if refusal.round != newest or newest < 1 or generalist is None:
                raise Refused(
                    409, "stale_round", f"generalist {refusal.round} cannot be refused, the newest is {newest}"
                )
            with self._database.transaction():
                self._database.run(
                    "INSERT INTO refusals VALUES (?, ?, ?, ?)",
                    device.id, refusal.round, refusal.loss_before, refusal.loss_after,
                )  # fmt: skip
        # Told again, too: the answer was lost, perhaps in a crash before the roll-back.
        count = self._refusals(refusal.round, active)["refusals"]
        enough = count >= max(math.ceil(active / 3), min(2, active))
        if generalist is not None and refusal.round == newest and enough and self.next_job(generalist) is None:
            self._roll_back(newest, generalist)
        return self._refusals(refusal.round, active)

    def _refusals(self, number: int, active: int) -> dict[str, Any]:
        count = int(self._database.value("SELECT count(*) FROM refusals WHERE round = ?", number))
        return {"refusals": count, "active": active, "newest": self.newest_number}

    def _content(self, number: int) -> int:
        """The number under which this generalist's content was published first."""
        found = self._database.value("SELECT rolled_back_to FROM rounds WHERE number = ?", number)
        return number if found is None else int(found)

    def _roll_back(self, newest: int, generalist: Generalist) -> None:
        """Publishes the content before that of `newest` under the open round's number, which moves on by one."""
        open_round, now = newest + 1, self._clock()
        target = self._content(self._content(newest) - 1)  # not one that was refused before
        good = self._database.row("SELECT * FROM rounds WHERE number = ?", target)
        if good is None or not self._payloads.path(good["sha256"]).exists():
            return  # it is not here any more
        with self._database.transaction():
            self._database.run("INSERT INTO rounds (number, opened) VALUES (?, ?)", open_round + 1, now)
            self._database.run("UPDATE updates SET round = ? WHERE round = ?", open_round + 1, open_round)
            self._database.run("UPDATE rounds SET closed = ? WHERE number = ?", now, open_round)
            self._enter(generalist, open_round, good["sha256"], good["size"], 0, target)
        self.collect()


class _Payload:
    """A payload that was checked when it came; one tensor at a time is read of it."""

    def __init__(self, path: Path, shapes: Shapes, format_name: str, weight: int = 0) -> None:
        self.path, self.shapes, self.format, self.weight = path, shapes, format_name, weight
        self._table = compress.table(shapes, format_name)
        self._starts = wire.starts(self._table)

    def tensor(self, name: str) -> wire.Arrays:
        """The tensor, as float32, by its name."""
        parts = [part for part in (name, name + compress.SCALES) if part in self._table]
        with self.path.open("rb") as file:
            packed = {part: wire.read_tensor(file, self._table, self._starts, part) for part in parts}
        return compress.unpack(packed, {name: self.shapes[name]}, self.format)


def make(job: Job, payloads: Payloads) -> tuple[str, int]:
    """Averages a round's updates into the next generalist and writes it; returns its SHA-256 and size in bytes.

    Tensor by tensor: it takes memory for one, however large the generalist is and however many devices there are.
    """
    shapes = {name: tuple(shape) for name, shape in job.generalist.tensors.items()}
    size = wire.encoded_size(compress.table(shapes, "float32"))
    return payloads.write(_pieces(job, shapes, payloads), size), size


def _pieces(job: Job, shapes: Shapes, payloads: Payloads) -> Iterator[bytes | memoryview]:
    before = None if job.before is None else _Payload(payloads.path(job.before), shapes, "float32")
    updates = [_update(row, shapes, payloads) for row in job.updates]
    yield wire.header(compress.table(shapes, "float32"))
    for name in sorted(shapes):
        # Round 0 has no generalist before: its update is the generalist itself.
        start = {name: np.zeros(shapes[name], np.float32)} if before is None else before.tensor(name)
        changes = ((update.tensor(name), update.weight) for update in updates if name in update.shapes)
        yield wire.pieces(aggregate(start, changes))[1]


def _update(row: dict[str, Any], shapes: Shapes, payloads: Payloads) -> _Payload:
    trained = rounds.trained(shapes, row["averaging"], row["trained_from"] + 1)
    part = {name: shapes[name] for name in trained}
    return _Payload(payloads.path(row["sha256"]), part, row["format"], row["weight"])
