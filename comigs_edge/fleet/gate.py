"""Whether a new generalist makes the validation text worse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from comigs_edge.fleet.outcome import Judgement
from comigs_edge.training.trainer import Trainer
from coordinator.protocol.wire import Arrays

GATE_ROWS, MAX_GATE_ROWS = 8, 64  # of the validation text, on which generalists are compared
GROUP = 2  # rows that are measured together


def compare(trainer: Trainer, gate: float, before: Sequence[Arrays], after: Arrays) -> Judgement:
    """Validation losses of the trainer's model with the best of these generalists and with the new one; leaves it as it was.

    As long as `gate` (nats a token) is within twice the standard error of the difference, twice as many rows are read.
    """
    validation, present = trainer.validation, trainer.adapters.generalist()
    groups = validation.rows.first(min(MAX_GATE_ROWS, validation.measured_rows), GROUP)
    weights = np.array([group.num_scored for group in groups], np.float64)
    wanted, losses = GATE_ROWS // GROUP, np.zeros((len(before) + 1, 0))
    try:
        while True:
            rows = []
            for generalist in (*before, after):
                trainer.adapters.load_generalist(generalist)
                rows.append([validation.mean_loss([group]) for group in groups[losses.shape[1] : wanted]])
            losses = np.concatenate([losses, np.array(rows)], axis=1)
            counts = weights[: losses.shape[1]]
            means = losses @ counts / counts.sum()
            best = int(np.argmin(means[:-1]))
            if losses.shape[1] == len(groups) or _is_clear(losses[-1] - losses[best], gate):
                return Judgement(float(means[best]), float(means[-1]), best == 0)
            wanted *= 2
    finally:
        trainer.adapters.load_generalist(present)


def _is_clear(differences: np.typing.NDArray[np.float64], gate: float) -> bool:
    """Whether the mean difference is on one side of the limit; what is no number is clear too."""
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return not abs(float(differences.mean()) - gate) <= 2 * error
