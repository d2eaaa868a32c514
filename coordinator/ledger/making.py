"""A closed round becomes a generalist: the mean of its updates is added to the one before, and written with what it changes.

It takes a second and no ledger, so it may run in another thread; it is a pure function of files that do not change, so after a
crash it is simply done again, with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from coordinator.ledger.payloads import Payloads
from coordinator.protocol import compress, counting, distances, wire
from coordinator.protocol.aggregate import add_change
from coordinator.protocol.counting import Array
from coordinator.protocol.errors import WireError
from coordinator.protocol.messages import Generalist
from coordinator.protocol.wire import Shapes


class Damaged(Exception):
    """Payloads that are gone, or not what was written."""

    def __init__(self, payloads: set[str]) -> None:
        super().__init__(f"{len(payloads)} payloads are damaged or gone")
        self.payloads = payloads


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


class Made(NamedTuple):
    """What `make_generalist` has written: two payloads, the change from the generalist before only where there is one."""

    sha256: str
    size: int  # bytes
    change_sha256: str | None = None
    change_size: int | None = None


class Tensors(Mapping[str, Array]):
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


def make_generalist(job: Job, payloads: Payloads) -> Made:
    """Averages a round's updates into the next generalist and writes it, and what it changes.

    It takes memory for one tensor, for any number of devices and any size of the generalist. Raises `Damaged`.
    """
    wanted = {update.sha256 for update in job.updates} | ({job.before} if job.before is not None else set())
    if damaged := payloads.unsound(wanted):
        raise Damaged(damaged)
    shapes = {name: tuple(shape) for name, shape in job.generalist.tensors.items()}
    table = compress.table(shapes, "float32")
    before = None if job.before is None else Tensors(payloads.path(job.before), shapes, "float32")
    updates = [(_read_update(update, shapes, payloads), update.counted_weight, update.weight) for update in _distinct(job)]

    def write(table: wire.Table, tensors: Iterable[wire.Packed]) -> tuple[str, int]:
        size = wire.encoded_size(table)
        return payloads.write(_bytes(table, tensors), size), size

    if before is None:
        return Made(*write(table, counting.next_generalist(shapes, before, updates)))
    change = write(compress.table(shapes, "float16"), counting.changes(shapes, updates))
    return Made(*write(table, _sums(before, payloads.path(change[0]), shapes)), *change)


def make_again(wanted: str, before: str, change: str, generalist: Generalist, payloads: Payloads) -> bool:
    """Writes a generalist that is lost, from the one before and the change; returns whether these gave its very bytes."""
    if not (payloads.is_sound(before) and payloads.is_sound(change)):
        return False
    shapes = {name: tuple(shape) for name, shape in generalist.tensors.items()}
    table = compress.table(shapes, "float32")
    sums = _sums(Tensors(payloads.path(before), shapes, "float32"), payloads.path(change), shapes)
    payloads.drop(wanted)
    return payloads.write(_bytes(table, sums), wire.encoded_size(table)) == wanted  # another is collected, if nobody needs it


def _sums(before: Tensors, change: Path, shapes: Shapes) -> Iterator[wire.Packed]:
    """The generalist before plus the change, tensor by tensor."""
    rounded = Tensors(change, shapes, "float16")
    return (add_change({name: before[name]}, {name: rounded[name]}) for name in sorted(shapes))


def _bytes(table: wire.Table, tensors: Iterable[wire.Packed]) -> Iterator[bytes | memoryview]:
    return chain([wire.header(table)], (wire.pieces(tensor)[1] for tensor in tensors))


def measure_distances(job: Job, payloads: Payloads) -> dict[str, float]:
    """How far each update of a round is from the others, by its SHA-256; empty where they are too few or too many.

    It takes memory for a sample of one tensor of each.
    """
    if not distances.LEAST <= len(job.updates) <= distances.MOST or len(_distinct(job)) == 1:
        return {}
    shapes = {name: tuple(shape) for name, shape in job.generalist.tensors.items()}
    updates = [_read_update(update, shapes, payloads) for update in job.updates]
    tensors = ([distances.sample(update[name]) if name in update else None for update in updates] for name in shapes)
    try:
        found = distances.scores(tensors)
    except (OSError, WireError):
        return {}  # a damaged payload: making the generalist says so
    return {update.sha256: score for update, score in zip(job.updates, found, strict=True)}


def _distinct(job: Job) -> list[Counted]:
    """The updates; one of them where all are the same, as a private window's mean is for each of its devices."""
    return job.updates[:1] if len({*job.updates}) == 1 and job.updates[0].counted_weight == job.updates[0].weight else job.updates


def _read_update(update: Counted, shapes: Shapes, payloads: Payloads) -> Tensors:
    sent = counting.update_shapes(shapes, update.averaging, update.trained_from)
    return Tensors(payloads.path(update.sha256), sent, update.format)
