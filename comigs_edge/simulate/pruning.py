"""HetLoRA's training (Cho et al. 2024, arXiv:2401.06432): a penalty on the last ranks, and ranks that were pruned stay so."""

from __future__ import annotations

import torch
from torch import Tensor

from comigs_edge.simulate.methods.ranks import pairs, smaller
from comigs_edge.training.batches import Batch
from comigs_edge.training.optimiser import Optimiser
from comigs_edge.training.trainer import Trainer

PENALTY = 5e-3  # the middle one of the three that the paper tries


class Pruning(Trainer):
    """Adds to the loss PENALTY |B'| |A'| of every low-rank pair; A' and B' are the ranks that would be pruned next."""

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        loss, balance = super()._loss(batch)
        for a, b in self._pairs():
            rank = int(a.detach().any(dim=1).sum())
            loss = loss + PENALTY * b[:, smaller(rank) : rank].norm() * a[smaller(rank) : rank].norm()
        return loss, balance

    def _optimise(self, learning: list[Optimiser], batch: Batch) -> float:
        """A step; moments from before move a pruned rank no more."""
        gone = [(a, b, ~a.any(dim=1)) for a, b in self._pairs()]
        loss = super()._optimise(learning, batch)
        with torch.no_grad():
            for a, b, ranks in gone:
                a[ranks], b[:, ranks] = 0.0, 0.0
        return loss

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        named = self.adapters.named
        return [(named[name_a], named[name_b]) for name_a, name_b in pairs(named)]
