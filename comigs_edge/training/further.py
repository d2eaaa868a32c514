"""A training that goes on from a finished one: more slowly, and with that one's moments.

At the rate of a new training and with moments that begin at zero it would first lose what was learned: docs/results.md has what
was tried.
"""

from __future__ import annotations

from dataclasses import asdict

from comigs_edge.training.checkpoint import Checkpoint
from comigs_edge.training.trainer import Trainer


def restore_moments(trainer: Trainer, before: Checkpoint, base_sha256: str) -> None:
    """Takes up those of the training `before`, unless it was of another base or of other experts."""
    progress = before.progress
    if progress["base_sha256"] == base_sha256 and progress["layout"] == asdict(trainer.adapters.layout):
        trainer.restore_moments(before.arrays)
        trainer.scores = progress.get("scores")
