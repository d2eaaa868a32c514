"""Whether a new generalist makes the validation text worse."""

from __future__ import annotations

from collections.abc import Sequence

from comigs_edge.fleet.outcome import Judgement
from comigs_edge.training.trainer import Trainer
from coordinator.protocol.wire import Arrays

GATE_ROWS = 8  # of the validation text, on which generalists are compared


def compare(trainer: Trainer, before: Sequence[Arrays], after: Arrays) -> Judgement:
    """Validation losses of the trainer's model with the best of these generalists and with the new one; leaves it as it was."""
    present, losses = trainer.adapters.generalist(), []
    try:
        for generalist in (*before, after):
            trainer.adapters.load_generalist(generalist)
            losses.append(trainer.validate(rows=GATE_ROWS))
    finally:
        trainer.adapters.load_generalist(present)
    *others, new = losses
    best = min(others)
    return Judgement(best, new, others[0] <= best)
