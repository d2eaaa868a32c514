"""A training whose text has changed since it began is measured anew: losses of other text say nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from coordinator.protocol.wire import Arrays

if TYPE_CHECKING:
    from comigs_edge.training.trainer import Trainer

CHANGED = (
    "your text, or what of it is measured, has changed since this training began: it goes on from what it learned, and is "
    "measured anew; to start without that: comigs-edge train --fresh"
)


def forget_losses(trainer: Trainer, start: Arrays | None) -> None:
    """They are those of another text: `start` is what is to be beaten now, or the present state."""
    trainer.first_loss, trainer.best_loss, trainer.last_loss = None, math.inf, math.nan
    trainer.scores, trainer.stale_periods, trainer.start = None, 0, start
    if start is None:
        trainer.best = trainer.adapters.arrays()
    trainer.curves.forget_validation()


def measure_anew(trainer: Trainer, start: Arrays) -> None:
    """What the training began with is to be beaten, by the state that was the best or by the present one."""
    present, best = trainer.adapters.arrays(), trainer.best

    def measure(arrays: Arrays) -> float:
        trainer.adapters.load_arrays(arrays)
        return trainer.measure_start()

    trainer.first_loss = trainer.best_loss = measure(start)
    trainer.best, trainer.start = start, None
    for arrays in (best, present):
        if (loss := measure(arrays)) < trainer.best_loss:
            trainer.best_loss, trainer.best = loss, arrays
