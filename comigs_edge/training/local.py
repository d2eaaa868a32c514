"""The local phase, the last of a training: specialists and router learn what is local, and the generalist stays as it is.

It begins with what the rest of the training ends with, and a training further begins there again: so neither the generalist nor
what shapes its gradient, specialists and router, has ever seen local text. Half of the rows are shared text, that it is not
forgotten, and the state that is kept is the best on the validation text of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from comigs_edge.arrays import select
from comigs_edge.home.config import TrainConfig
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.training.batches import Rows
from comigs_edge.training.checkpoint import Progress
from comigs_edge.training.closing import MixedRows, router_rows
from comigs_edge.training.event import Event
from comigs_edge.training.schedule import Schedule
from comigs_edge.training.trainer import Trainer
from coordinator.protocol.generalist import may_leave
from coordinator.protocol.wire import Arrays

PREFIX = "local."  # of its arrays in a checkpoint, and with `PROGRESS` of what JSON can hold
PROGRESS = "local"
SHARE = 0.5  # of the experts' rows are local text
PASSES = 3  # that it makes over the local rows, in no more steps than a training has


@dataclass(frozen=True, kw_only=True)
class LocalText:
    """What the phase reads: local training text, the validation text of all, and the shared training text."""

    training: Rows
    validation: Rows
    shared: Rows

    def digest(self) -> str:
        """Of what is measured and learned."""
        return f"{self.training.digest()} {self.validation.digest()}"

    def steps(self, schedule: Schedule) -> int:
        """Expert steps of the phase behind a training with this schedule."""
        return local_steps(len(self.training), schedule)

    def total_steps(self, schedule: Schedule) -> int:
        """Those of the experts and of the router."""
        return total_local_steps(len(self.training), schedule)


class LocalPhase:
    """The local phase behind a training with `schedule` that ended with `start`."""

    def __init__(
        self, start: Adapters, text: LocalText, schedule: Schedule, ordinary: Rows | None,
        make_model: Callable[[Adapters], Model],
    ) -> None:  # fmt: skip
        self.start = start.arrays()  # what a training further begins with
        copied = Adapters.from_arrays(start.layout, start.hparams, start.arrays())
        self.trainer = Trainer(make_model(copied), text.training, text.validation, _schedule(schedule, text.steps(schedule)))
        self.trainer.training = MixedRows(text.shared, text.training, SHARE)
        if ordinary is not None and start.layout.zero_expert:
            self.trainer.router_rows = router_rows(self.trainer.validation.router_rows, ordinary)
        self.trainer.frozen = {name for name in start.named if may_leave(name)}
        self._text = text.digest()

    @property
    def is_done(self) -> bool:
        """Whether all steps have been done."""
        return self.trainer.is_done

    @property
    def steps(self) -> int:
        """Those that were done."""
        return self.trainer.expert_steps + self.trainer.router_steps

    @property
    def is_kept(self) -> bool:
        """Whether it is done, and what came out is better than what it began with."""
        return self.is_done and self.trainer.is_better

    def facts(self) -> dict[str, float | None]:
        """Losses of all validation text before and after it, nats a token, for a manifest."""
        return {"all_validation_loss_before": self.trainer.first_loss, "all_validation_loss": self.trainer.best_loss}

    def run(self, main: Trainer, closing_steps: int) -> Iterator[Event]:
        """Does step after step, counted behind those of `main` and of the closing phase; stop iterating to interrupt."""
        for event in self.trainer.run():
            router_steps = main.router_steps + closing_steps + event.expert_steps + event.router_steps
            yield replace(event, phase="local", expert_steps=main.expert_steps, router_steps=router_steps, is_best=False)

    def state(self) -> tuple[Arrays, Progress]:
        """What a checkpoint needs; the arrays are views."""
        arrays, progress = self.trainer.state()
        return {PREFIX + name: array for name, array in arrays.items()}, {PROGRESS: progress | {"text": self._text}}

    def restore(self, arrays: Arrays, progress: Progress) -> None:
        """The reverse of `state`; of other text, or behind another end of the training, it begins anew."""
        saved, layout = progress[PROGRESS], asdict(self.trainer.adapters.layout)
        if saved["text"] == self._text and saved["layout"] == layout:
            self.trainer.restore(select(arrays, PREFIX), progress[PROGRESS])


def local_steps(rows: int, schedule: Schedule) -> int:
    """Expert steps that so many rows of local text take behind a training with this schedule."""
    most = max(schedule.steps, TrainConfig.steps) if schedule.goes_on else schedule.steps  # that one may be short
    return min(most, max(schedule.router_period, math.ceil(PASSES * rows / (SHARE * schedule.batch))))


def total_local_steps(rows: int, schedule: Schedule) -> int:
    """Those, and the router's between them."""
    return _schedule(schedule, local_steps(rows, schedule)).total_steps


def _schedule(schedule: Schedule, steps: int) -> Schedule:
    return replace(
        schedule, steps=steps, closing_steps=0, patience=0, decay_from=None, warmup_steps=min(schedule.warmup_steps, steps // 10)
    )
