"""A training in rounds: after a number of expert steps the device exchanges generalists with its fleet, and trains on.

The generalist is the only thing that passes, through `may_leave`. Specialists, router and text are not even looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from comigs_edge.errors import EXPECTED, sentence
from comigs_edge.fleet.books import Books
from comigs_edge.fleet.exchange import Exchange
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.gate import compare
from comigs_edge.fleet.http import open_books
from comigs_edge.fleet.outcome import Outcome
from comigs_edge.fleet.private import connect
from comigs_edge.home.folder import Home
from comigs_edge.home.marks import Mark
from comigs_edge.training.event import Event
from comigs_edge.training.run import TrainingRun
from comigs_edge.training.trainer import Trainer

PATIENCE = 10.0  # seconds that a call is retried: the training waits meanwhile
Way = Callable[[Books, float], Exchange]  # of books to their fleet, with the seconds that a call is retried


@dataclass
class Totals:
    """What a training exchanged."""

    updates: int = 0
    generalists: int = 0
    refused: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    newest: int | None = None  # number of the generalist that was taken over last
    waits: bool = False  # something was learned that the fleet has not received
    round_waits: str | None = None  # why the open round does not close
    kept_out: str | None = None  # why no private window takes what was learned
    trouble: str | None = None  # why the training went on alone
    rounds: list[int] = field(default_factory=list)  # that an update counted in


class Rounds:
    """A training in its fleet. It never fails for the fleet: after an error that is not the network's it continues alone.

    `say` takes one sentence at a time, `warn` the reason for continuing alone.
    """

    def __init__(
        self, home: Home, training: TrainingRun, trainer: Trainer, say: Callable[[str], None], warn: Callable[[str], None],
        is_alone: bool = False, way: Way = connect,
    ) -> None:  # fmt: skip
        """Takes over the newest generalist, which comes by this `way`; one that `is_alone` only keeps its books."""
        self._home, self._training, self._trainer, self._say, self._warn = home, training, trainer, say, warn
        self._way = way
        self._opened: Books | None = None
        self._connected: Exchange | None = None
        self._was_offline, self._is_alone = False, False
        self.totals = Totals()
        if is_alone:
            self._go_alone()
        else:
            self._guard(self._begin)

    def after(self, event: Event) -> None:
        """After a step: exchanges if a round's steps are done."""
        if self._is_alone or event.phase != "expert" or event.expert_steps % self._books.membership.local_steps:
            return
        if self._exchange.is_due():
            self._guard(self.exchange)

    def end(self) -> None:
        """After the last step: what was not brought yet is brought, or sealed for later."""
        self._guard(self._bring_rest)
        if self._is_alone:
            with contextlib.suppress(Exception):  # the adapters hold it too
                self._keep()

    def _guard(self, action: Callable[[], None]) -> None:
        if self._is_alone:
            return
        try:
            action()
            self._set_mark()
        except Exception as error:
            reason = sentence(error)
            self._warn(f"{reason}; the training goes on alone")
            self.totals.trouble = reason
            with contextlib.suppress(Exception):  # the disk may be what is full
                FleetFolder(self._home).note_trouble(reason)
            self._go_alone()

    def _go_alone(self) -> None:
        self._is_alone = True
        with contextlib.suppress(Exception):
            self._settle()

    def _settle(self) -> None:
        """Also after an error in the middle: the generalist becomes the one that the books on the disk are about."""
        adapters, self._opened, self._connected = self._trainer.adapters, None, None
        adapters.load_generalist(self._books.resume(adapters.generalist(), *self._training.mark))
        self._set_mark()

    def _keep(self) -> None:
        self._books.keep(self._trainer.adapters.generalist(), self._new_tokens)
        self._set_mark()

    @property
    def _new_tokens(self) -> int:
        """Trained on since the books were told."""
        return (self._training.mark.tokens or 0) - self._books.standing.unsent_tokens

    def _set_mark(self) -> None:
        self._training.mark = Mark(self._books.mark, self._books.standing.unsent_tokens)

    @property
    def _books(self) -> Books:
        if self._opened is None:
            adapters = self._trainer.adapters
            self._opened = open_books(self._home, self._training.settings, adapters.layout, adapters.hparams)
        return self._opened

    @property
    def _exchange(self) -> Exchange:
        if self._connected is None:
            self._connected = self._way(self._books, PATIENCE)
        return self._connected

    def _begin(self) -> None:
        trainer = self._trainer
        self._settle()
        self.exchange()
        if trainer.first_loss is None:  # this is what is to be beaten
            trainer.best = trainer.adapters.arrays()

    def _bring_rest(self) -> None:
        self.exchange()
        self._books.seal_rest(self._trainer.adapters.generalist())
        self.totals.waits = self._books.waits

    def exchange(self) -> None:
        """Brings and takes over what there is."""
        trainer, books, tokens = self._trainer, self._books, self._new_tokens
        loss = trainer.last_loss if trainer.last_loss == trainer.last_loss else None
        outcome = self._exchange.run(trainer.adapters.generalist(), tokens, partial(compare, trainer, books.gate), loss)
        if outcome.generalist is not None:
            trainer.adapters.load_generalist(outcome.generalist)
        trainer.frozen = books.frozen()
        self._count(outcome)
        self._report(outcome)
        self._was_offline = outcome.offline is not None
        notes = books.folder.notes
        while notes:
            self._warn(notes.pop(0))

    def _count(self, outcome: Outcome) -> None:
        totals = self.totals
        totals.updates += len(outcome.receipts) + outcome.had_arrived
        totals.rounds += [receipt.round for receipt in outcome.receipts]
        totals.bytes_sent += outcome.bytes_sent
        totals.bytes_received += outcome.bytes_received
        totals.waits, totals.round_waits, totals.kept_out = outcome.waits, outcome.heard.waiting, outcome.heard.kept_out
        totals.refused += outcome.refused is not None
        if outcome.taken_over is not None:
            totals.generalists, totals.newest = totals.generalists + 1, outcome.taken_over

    def _report(self, outcome: Outcome) -> None:
        if outcome.restored_to is not None:
            self._say(outcome.restoration)
        for receipt in outcome.receipts:
            late = "" if receipt.weight == 1 else f", late: it counts {receipt.weight:.2f}"
            self._say(f"update in round {receipt.round}{late}")
        if outcome.taken_over is not None:
            self._say(f"took over generalist {outcome.taken_over} of the fleet")
        if outcome.refused is not None and outcome.judgement is not None:
            before, after, _ = outcome.judgement
            self._say(
                f"kept the old generalist: generalist {outcome.refused} would change the validation loss from {before:.3f} to "
                f"{after:.3f}"
            )
        if outcome.offline and not self._was_offline:
            self._say(f"{outcome.offline.split(';')[0]}; training goes on, the update waits")


def _note_begin(folder: FleetFolder, trainer: Trainer, mark: Mark, warn: Callable[[str], None]) -> None:
    """Of a training alone; a disk that refuses is no reason not to train."""
    try:
        folder.alone.begin(trainer.adapters.generalist(), mark)
    except EXPECTED as error:
        warn(f"{sentence(error)}; the training goes on, and a fleet that is joined again may not receive what it learns")


def open_rounds(
    home: Home, training: TrainingRun, trainer: Trainer, say: Callable[[str], None], warn: Callable[[str], None],
    is_alone: bool = False, way: Way = connect,
) -> Rounds | None:  # fmt: skip
    """The rounds of this training, with the newest generalist taken over; None for a device that belongs to no fleet."""
    with contextlib.suppress(PermissionError):  # its rounds say so, and the training goes on alone
        folder = FleetFolder(home)
        if not folder.is_member:
            if training.mark.word is not None or folder.was_member:
                _note_begin(folder, trainer, training.mark, warn)
            return None
    return Rounds(home, training, trainer, say, warn, is_alone, way)
