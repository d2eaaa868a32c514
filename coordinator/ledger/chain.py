"""The published generalists: a signed chain of manifests, made from closed rounds, rolled back where devices refuse.

Making one takes a second and no ledger, so `make_generalist` may run in another thread; it is a pure function of files that
do not change, so after a crash it is simply done again, with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.ledger.database import Database
from coordinator.ledger.members import Device
from coordinator.ledger.payloads import Payloads
from coordinator.protocol import compress, counting, distances, keys, rounds, wire
from coordinator.protocol.counting import Array
from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import Generalist, Refusal, SignedManifest
from coordinator.protocol.wire import Shapes

KEPT_GENERALISTS = 10  # payloads; all manifests are kept


@dataclass(frozen=True, kw_only=True)
class Counted:
    """An update that counts in a closed round; the fields are columns of the ledger."""

    sha256: str
    trained_from: int
    weight: int
    counted_weight: int
    format: str
    averaging: str


class Job(NamedTuple):
    """A closed round whose generalist is to be made."""

    round: int
    generalist: Generalist
    before: str | None  # SHA-256 of the generalist before
    updates: list[Counted]


class Chain:
    """The generalists of a fleet."""

    def __init__(
        self, database: Database, payloads: Payloads, signing_key: Ed25519PrivateKey, fleet: str, clock: Callable[[], float]
    ) -> None:
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
        number = self._database.value("SELECT max(number) FROM rounds WHERE published IS NOT NULL")
        return -1 if number is None else int(number)

    @property
    def newest(self) -> SignedManifest | None:
        """The newest generalist's manifest."""
        manifests = self.manifests(self.newest_number - 1)
        return manifests[-1] if manifests else None

    def manifests(self, after: int) -> list[SignedManifest]:
        """The chain after this number, a thousand links at most."""
        rows = self._database.rows(
            "SELECT manifest, signature FROM rounds WHERE number > ? AND published IS NOT NULL ORDER BY number LIMIT 1000", after
        )
        return [SignedManifest(**row) for row in rows]

    # From closed rounds -------------------------------------------------------------------------------------------

    def next_job(self, generalist: Generalist | None) -> Job | None:
        """The oldest closed round without a generalist."""
        row = self._database.row("SELECT * FROM rounds WHERE closed IS NOT NULL AND published IS NULL ORDER BY number")
        if row is None or generalist is None:
            return None
        before = self._database.value("SELECT sha256 FROM rounds WHERE number = ?", row["number"] - 1)
        updates = self._database.rows(
            "SELECT sha256, trained_from, weight, coalesce(counted_weight, weight) AS counted_weight, format, averaging "
            "FROM updates WHERE round = ? ORDER BY device",
            row["number"],
        )
        return Job(row["number"], generalist, before, [Counted(**update) for update in updates])

    def publish(self, job: Job, sha256: str, size: int) -> None:
        """Enters a generalist that `make_generalist` has written: the next link of the chain."""
        with self._database.transaction():
            self._enter(job.generalist, number=job.round, sha256=sha256, size=size, devices=len(job.updates))
        self.collect()

    def record_distances(self, number: int, scores: Mapping[str, float]) -> None:
        """Keeps what `measure_distances` found."""
        with self._database.transaction():
            for sha256, score in scores.items():
                self._database.run("UPDATE updates SET distance = ? WHERE round = ? AND sha256 = ?", score, number, sha256)

    def _enter(self, generalist: Generalist, **link: Any) -> None:
        """Signs the chain's next link: its `number`, `sha256`, `size`, `devices` and, of a way back, `rolled_back_to`."""
        manifest = keys.next_manifest(self.newest, fleet=self._fleet, base_sha256=generalist.base_sha256, **link)
        signed = keys.sign_manifest(self._signing_key, manifest)
        self._database.run(
            "UPDATE rounds SET published = ?, sha256 = ?, size = ?, devices = ?, manifest = ?, signature = ?, "
            "rolled_back_to = ? WHERE number = ?",
            self._clock(), manifest.sha256, manifest.size, manifest.devices, signed.manifest, signed.signature,
            manifest.rolled_back_to, manifest.round,
        )  # fmt: skip

    def collect(self) -> None:
        """Deletes payloads that nothing refers to any more: updates of published rounds, old generalists."""
        wanted = self._database.rows(
            "SELECT sha256 FROM (SELECT sha256 FROM rounds WHERE published IS NOT NULL ORDER BY number DESC LIMIT ?) UNION "
            "SELECT updates.sha256 FROM updates JOIN rounds ON number = round WHERE published IS NULL",
            KEPT_GENERALISTS,
        )
        self._payloads.collect({row["sha256"] for row in wanted}, self._clock())

    # Roll-back ----------------------------------------------------------------------------------------------------

    def refuse(self, device: Device, refusal: Refusal, active: int, generalist: Generalist | None) -> dict[str, int]:
        """A device refuses the newest generalist; if a third of the fleet does, the one before is published again."""
        newest = self.newest_number
        known = self._database.value("SELECT 1 FROM refusals WHERE device = ? AND round = ?", device.id, refusal.round)
        if known is None:
            if refusal.round != newest or newest < 1 or generalist is None:
                raise Refused(409, "stale_round", f"generalist {refusal.round} cannot be refused, the newest is {newest}")
            with self._database.transaction():
                self._database.run(
                    "INSERT INTO refusals VALUES (?, ?, ?, ?)", device.id, refusal.round, refusal.loss_before, refusal.loss_after
                )
        # Sent again, too: the answer was lost, perhaps in a crash before the roll-back.
        enough = self._refusals(refusal.round, active)["refusals"] >= rounds.refusal_quorum(active)
        if generalist is not None and refusal.round == newest and enough and self.next_job(generalist) is None:
            self._roll_back(newest, generalist)
        return self._refusals(refusal.round, active)

    def _refusals(self, number: int, active: int) -> dict[str, int]:
        rows = self._database.rows(
            "SELECT device FROM refusals JOIN devices ON id = device WHERE round = ? AND revoked IS NULL", number
        )
        counted = rounds.believed({row["device"] for row in rows}, self.habitual(), active)
        return {"refusals": len(counted), "active": active, "newest": self.newest_number}

    def habitual(self) -> set[str]:
        """Ids of devices that refused most of the last generalists that the fleet made."""
        rows = self._database.rows(
            "SELECT device FROM refusals WHERE round IN (SELECT number FROM rounds WHERE published IS NOT NULL "
            "AND rolled_back_to IS NULL ORDER BY number DESC LIMIT ?) GROUP BY device HAVING count(*) >= ?",
            rounds.OF, rounds.REFUSED,
        )  # fmt: skip
        return {row["device"] for row in rows}

    def _roll_back(self, newest: int, generalist: Generalist) -> None:
        """Publishes the generalist before `newest` under the open round's number, which grows by one."""
        open_round, now = newest + 1, self._clock()
        rows = self._database.rows("SELECT number, rolled_back_to FROM rounds WHERE rolled_back_to IS NOT NULL")
        target = rounds.generalist_before(newest, {row["number"]: row["rolled_back_to"] for row in rows})
        good = self._database.row("SELECT * FROM rounds WHERE number = ?", target)
        if good is None or not self._payloads.path(good["sha256"]).exists():
            return  # its payload is deleted
        with self._database.transaction():
            self._database.run("INSERT INTO rounds (number, opened) VALUES (?, ?)", open_round + 1, now)
            self._database.run("UPDATE updates SET round = ? WHERE round = ?", open_round + 1, open_round)
            self._database.run("UPDATE rounds SET closed = ? WHERE number = ?", now, open_round)
            self._enter(generalist, number=open_round, sha256=good["sha256"], size=good["size"], devices=0, rolled_back_to=target)
        self.collect()


class _Tensors(Mapping[str, Array]):
    """The tensors of a payload that was checked when it came, as float32; each is read from the file when it is wanted."""

    def __init__(self, path: Path, shapes: Shapes, format_name: str) -> None:
        self._path, self._shapes, self._format = path, shapes, format_name
        self._table = compress.table(shapes, format_name)
        self._starts = wire.starts(self._table)

    def __getitem__(self, name: str) -> Array:
        parts = [part for part in (name, name + compress.SCALES) if part in self._table]
        with self._path.open("rb") as file:
            packed = {part: wire.read_tensor(file, self._table, self._starts, part) for part in parts}
        return compress.unpack(packed, {name: self._shapes[name]}, self._format)[name]

    def __contains__(self, name: object) -> bool:
        return name in self._shapes  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def make_generalist(job: Job, payloads: Payloads) -> tuple[str, int]:
    """Averages a round's updates into the next generalist and writes it; returns its SHA-256 and size in bytes.

    It takes memory for one tensor, for any number of devices and any size of the generalist.
    """
    shapes = {name: tuple(shape) for name, shape in job.generalist.tensors.items()}
    table = compress.table(shapes, "float32")
    before = None if job.before is None else _Tensors(payloads.path(job.before), shapes, "float32")
    updates = []
    for update in job.updates:
        sent = counting.update_shapes(shapes, update.averaging, update.trained_from)
        updates.append((_Tensors(payloads.path(update.sha256), sent, update.format), update.counted_weight, update.weight))

    def pieces() -> Iterator[bytes | memoryview]:
        yield wire.header(table)
        for tensor in counting.next_generalist(shapes, before, updates):
            yield wire.pieces(tensor)[1]

    size = wire.encoded_size(table)
    return payloads.write(pieces(), size), size


def measure_distances(job: Job, payloads: Payloads) -> dict[str, float]:
    """How far each update of a round is from the others, by its SHA-256; empty where they are too few or too many.

    It takes memory for one tensor of each.
    """
    if not distances.LEAST <= len(job.updates) <= distances.MOST:
        return {}
    shapes = {name: tuple(shape) for name, shape in job.generalist.tensors.items()}
    updates = []
    for update in job.updates:
        sent = counting.update_shapes(shapes, update.averaging, update.trained_from)
        updates.append(_Tensors(payloads.path(update.sha256), sent, update.format))
    tensors = ([update.get(name) for update in updates] for name in shapes)
    try:
        found = distances.scores(tensors)
    except (OSError, wire.WireError):
        return {}  # a damaged payload: making the generalist says so
    return {update.sha256: score for update, score in zip(job.updates, found, strict=True)}
