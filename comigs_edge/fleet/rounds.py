"""A training in rounds: every so many expert steps the device exchanges generalists with its fleet, and trains on.

The generalist is the only thing that passes, through `adapters.may_leave`. Specialists, router and text are not even looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from comigs_edge.fleet.client import Remote
from comigs_edge.fleet.exchange import Federation
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.outcome import Exchange, Judgement
from comigs_edge.home.config import FleetConfig
from comigs_edge.home.folder import Home
from comigs_edge.progress import SILENT, Progress
from comigs_edge.training.trainer import Event, Trainer
from coordinator.protocol.wire import Arrays

GATE_ROWS = 8  # of the validation text, on which generalists are compared


def open_federation(
    home: Home, settings: FleetConfig, shapes: dict[str, tuple[int, ...]], base_sha256: str, patience: float
) -> Federation:
    """This home's side of its fleet; `patience` is how long (seconds) a call goes on trying. Raises `ComigsError`."""
    folder = FleetFolder(home)
    member = folder.membership()
    remote = Remote(member.address, bytes.fromhex(member.pin), folder.key(), member.device, patience)
    return Federation(folder, remote, shapes, base_sha256, settings.gate, settings.report_loss)


def compare(trainer: Trainer, before: Arrays, after: Arrays) -> Judgement:
    """Validation losses of the trainer's model with one generalist and with the other; leaves it as it was."""
    now, losses = trainer.adapters.generalist(), []
    try:
        for generalist in (before, after):
            trainer.adapters.load_generalist(generalist)
            losses.append(trainer.validate(rows=GATE_ROWS))
    finally:
        trainer.adapters.load_generalist(now)
    return Judgement(*losses)


@dataclass
class Totals:
    """What a training exchanged."""

    updates: int = 0
    generalists: int = 0
    refused: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    newest: int | None = None  # number of the generalist that was taken over last
    waits: bool = False  # an update waits in the outbox
    rounds: list[int] = field(default_factory=list)  # that an update counted in


class Together:
    """A trainer in its fleet. `say` tells the person one sentence at a time."""

    def __init__(self, federation: Federation, trainer: Trainer, say: Callable[[str], None]) -> None:
        self.federation, self._trainer, self._say = federation, trainer, say
        self._tokens, self._was_offline = 0, False
        self.totals = Totals()

    def begin(self, mark: str | None, progress: Progress = SILENT) -> None:
        """Before the first step: the newest generalist. `mark` is that of the checkpoint that is gone on with."""
        adapters = self._trainer.adapters
        adapters.load_generalist(self.federation.begin(adapters.generalist(), mark))
        self.exchange(progress)
        if self._trainer.first_loss is None:  # what there is to be beaten
            self._trainer.best = adapters.arrays()

    def after(self, event: Event) -> bool:
        """After a step: exchanges if a round's steps are done. Returns whether it did."""
        if event.phase != "expert":
            return False
        self._tokens += event.tokens
        if event.expert_steps % self.federation.membership.local_steps or not self.federation.is_due():
            return False
        self.exchange()
        return True

    def end(self) -> None:
        """After the last step: what was not brought yet is brought, or sealed for later."""
        self.exchange()
        self.totals.waits = self.federation.seal_rest(self._trainer.adapters.generalist())

    def exchange(self, progress: Progress = SILENT) -> Exchange:
        """Brings and takes over what there is; training goes on whatever comes of it."""
        trainer, tokens = self._trainer, self._tokens
        self._tokens = 0
        loss = trainer.last_loss if trainer.last_loss == trainer.last_loss else None
        found = self.federation.exchange(
            trainer.adapters.generalist(), tokens, partial(compare, trainer), loss, progress
        )
        if found.generalist is not None:
            trainer.adapters.load_generalist(found.generalist)
        trainer.frozen = self.federation.frozen()
        self._report(found)
        return found

    def _report(self, found: Exchange) -> None:
        totals = self.totals
        totals.updates += len(found.receipts)
        totals.rounds += [receipt.round for receipt in found.receipts]
        totals.bytes_sent += found.bytes_sent
        totals.bytes_received += found.bytes_received
        totals.waits = found.waits
        for receipt in found.receipts:
            late = "" if receipt.weight == 1 else f", late: it counts {receipt.weight:.2f}"
            self._say(f"update in round {receipt.round}{late}")
        if found.taken_over is not None:
            totals.generalists, totals.newest = totals.generalists + 1, found.taken_over
            self._say(f"took over generalist {found.taken_over} of the fleet")
        if found.refused is not None and found.judgement is not None:
            totals.refused += 1
            before, after = found.judgement
            self._say(
                f"kept the old generalist: {found.refused} would raise the validation loss from {before:.3f} to {after:.3f}"
            )
        if found.offline and not self._was_offline:
            self._say(f"{found.offline.split(';')[0]}; training goes on, the update waits")
        self._was_offline = found.offline is not None
