"""What the commands `sync` and `rollback` do: an exchange by hand, a look at what would leave, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comigs_edge.base.hparams import read_hparams
from comigs_edge.errors import ComigsError
from comigs_edge.fleet import back
from comigs_edge.fleet.books import Books
from comigs_edge.fleet.exchange import Exchange
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.generalist import read_generalist, read_interrupted, read_layout, select_generalist
from comigs_edge.fleet.http import open_books
from comigs_edge.fleet.leaving import leaving, staying, who_reads
from comigs_edge.fleet.outcome import Judge, Judgement, Outcome
from comigs_edge.fleet.private import connect
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from comigs_edge.home.marks import Mark, read_mark
from comigs_edge.home.versions import UNMEASURED, Saved, load, notes_of, save, versions
from comigs_edge.planning.plan import resolve
from comigs_edge.progress import Progress
from coordinator.protocol import wire
from coordinator.protocol.wire import Arrays
from quantize.gguf_file import GGUFFile

PATIENCE = 30.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Sync:
    """What an exchange by hand did."""

    outcome: Outcome
    version: int | None = None  # of the adapters that hold the generalist that was taken over
    begins: bool = False  # the fleet has no generalist yet: what was learned is brought by the next one
    notes: tuple[str, ...] = ()  # what was found damaged


def sync(home: Home, settings: Config, progress: Progress) -> Sync:
    """Exchanges generalists. Only the outbox is brought where there are no adapters that could take something over."""
    try:
        return _sync(home, settings, progress)
    except ComigsError as error:
        FleetFolder(home).note_trouble(str(error))
        raise


def _sync(home: Home, settings: Config, progress: Progress) -> Sync:
    exchange = _open(home, settings)
    interrupted = read_interrupted(home)  # it takes over what is new when it is resumed
    if interrupted or not versions(home.adapters):
        outcome = exchange.bring_waiting(interrupted, progress)
        return Sync(outcome=outcome, notes=tuple(exchange.books.folder.notes))
    saved, books = _saved(home, settings), exchange.books
    generalist = books.resume(select_generalist(saved.arrays), *read_mark(saved.manifest))
    outcome = exchange.run(generalist, 0, _judge(home, settings, saved), None, progress)
    version = None
    if outcome.generalist is not None:
        version = _publish(home, settings, saved, outcome.generalist, outcome.taken_over, books)
    begins = outcome.waits and books.standing.trained_from < 0
    return Sync(outcome=outcome, version=version, begins=begins, notes=tuple(books.folder.notes))


def roll_back(home: Home, settings: Config, to: int | None) -> tuple[int, int]:
    """Returns to a kept generalist, the one before by default: its number, and the version of the adapters with it."""
    if not FleetFolder(home).is_member:
        raise ComigsError(
            "this device belongs to no fleet; to go back to the version of your model before: comigs-edge models rollback"
        )
    if read_interrupted(home) is not None:
        raise ComigsError("a training is interrupted and holds the generalist; end it first with: comigs-edge train --resume")
    saved, books = _saved(home, settings), _open(home, settings).books
    number, generalist = back.roll_back(books, to, books.resume(select_generalist(saved.arrays), *read_mark(saved.manifest)))
    return number, _publish(home, settings, saved, generalist, number, books)


def preview(home: Home, settings: Config) -> tuple[dict[str, Any], bool]:
    """What would leave this device, as JSON; nothing is sent. And whether the initial generalist would leave before it."""
    books, generalist = _open(home, settings).books, read_generalist(home, settings)
    update, member = books.folder.outbox() or books.pack(generalist), books.membership
    return {
        "to": member.address, "fleet": member.fleet, "device": member.name, "bytes": len(wire.encode(update.packed)),
        "tensors": {
            name: {"type": str(array.dtype), "shape": list(array.shape), "bytes": array.nbytes}
            for name, array in sorted(update.packed.items())
        },
        "private": member.is_private, "who_reads": who_reads(member.is_private, bool(member.roster_key)),
        "leaves": leaving(settings.fleet.report_loss, member.is_private), "stays": list(staying(settings.fleet.report_loss)),
        "changes_nothing_yet": generalist is None,
    }, books.standing.trained_from < 0  # fmt: skip


def _open(home: Home, settings: Config) -> Exchange:
    return connect(open_books(home, settings, *read_layout(home, settings)), PATIENCE)


def _saved(home: Home, settings: Config) -> Saved:
    return load(home.adapters, read_hparams(GGUFFile(home.base_file)), settings.base.sha256)


def _publish(home: Home, settings: Config, saved: Saved, generalist: Arrays, number: int | None, books: Books) -> int:
    """The adapters with another generalist, as their next version."""
    mark = Mark(books.mark, books.standing.unsent_tokens).facts()
    notes = notes_of(saved.manifest) | UNMEASURED | {"generalist": number, **mark}
    shared = None if saved.local_free is None else saved.local_free | generalist
    return save(home.adapters, saved.arrays | generalist, saved.layout, settings.base.sha256, notes, shared)


def _judge(home: Home, settings: Config, saved: Saved) -> Judge:
    """Compares generalists on the validation text; base and text are loaded only if there is something to compare."""

    def judge(before: Sequence[Arrays], after: Arrays) -> Judgement:
        from comigs_edge.fleet.gate import compare
        from comigs_edge.nn.adapters import Adapters
        from comigs_edge.training.opening import open_training

        run = open_training(home, resolve(home, settings, measure=True))  # as a training would have it
        adapters = Adapters.from_arrays(saved.layout, run.base.hparams, saved.shared)
        return compare(run.make_trainer(adapters), settings.fleet.gate, before, after)

    return judge
