"""A training's fleet, as the command `train` sees it: whatever the coordinator does, the training goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from comigs_edge.commands.console import notes, size, warn
from comigs_edge.errors import USER_ERRORS
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.rounds import Together, open_federation
from comigs_edge.home.config import FleetConfig
from comigs_edge.home.folder import Home
from comigs_edge.nn.experts import generalist_shapes
from comigs_edge.training.run import TrainingRun
from comigs_edge.training.trainer import Event, Trainer

PATIENCE = 10.0  # seconds that a call goes on trying: the training waits meanwhile


class Fleet:
    """Exchanges at the right steps; after an error that is not the network's it leaves the coordinator alone."""

    def __init__(
        self, home: Home, settings: FleetConfig, training: TrainingRun, trainer: Trainer, say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._training, self._warn, self._works = training, warn, True
        adapters = trainer.adapters
        shapes = {name: tuple(shape) for name, shape in generalist_shapes(adapters.layout, adapters.shape).items()}
        federation = open_federation(home, settings, shapes, training.settings.base.sha256, PATIENCE)
        self._together = Together(federation, trainer, say)
        self._guarded(lambda: self._together.begin(training.fleet_mark))

    def after(self, event: Event) -> None:
        """After a step."""
        if event.is_best:
            self._training.best_mark = self._training.fleet_mark
        self._guarded(lambda: self._together.after(event))

    def end(self) -> None:
        """After the last step."""
        self._guarded(self._together.end)

    def _guarded(self, action: Callable[[], object]) -> None:
        if not self._works:
            return
        try:
            action()
        except USER_ERRORS as error:
            self._works = False
            self._warn(f"{error}; the training goes on alone")
        self._training.fleet_mark = self._together.federation.mark

    def totals(self) -> dict[str, Any]:
        """What was exchanged."""
        return asdict(self._together.totals)

    def summary(self) -> str:
        """The same in a sentence."""
        totals = self._together.totals
        newest = "" if totals.newest is None else f", the newest is {totals.newest}"
        waits = "; an update waits, it is brought by: comigs-edge sync" if totals.waits else ""
        return (
            f"fleet: {totals.updates} updates brought ({size(totals.bytes_sent)}), {totals.generalists} generalists taken over "
            f"({size(totals.bytes_received)}){newest}{waits}"
        )


def joined(home: Home, training: TrainingRun, trainer: Trainer) -> Fleet | None:
    """The fleet of this training, with the newest generalist taken over; None for a device that belongs to none."""
    if not FleetFolder(home).is_member:
        return None
    say = partial(notes.print, markup=False, soft_wrap=True)
    with notes.status("asking the coordinator"):
        return Fleet(home, training.settings.fleet, training, trainer, say, warn)
