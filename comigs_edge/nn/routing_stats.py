"""Means of what routers read and decide, for a step or a validation."""

from __future__ import annotations

import torch
from torch import Tensor

from comigs_edge.nn.routing import Routing


class BlockMeans:
    """Means over all tokens that pass, one for each block with a router."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def add(self, block: int, values: Tensor, dtype: torch.dtype) -> None:
        """Counts the values of some tokens (N, ...) in, summed in `dtype`."""
        total = values.detach().sum(0, dtype=dtype)
        # A block that is computed again for the backward pass counts all its tokens twice: the mean stays.
        self._sums[block] = self._sums[block] + total if block in self._sums else total
        self._counts[block] = self._counts.get(block, 0) + len(values)

    def take(self, other: BlockMeans) -> None:
        """Means what another has counted, also what is counted there again, at the same place."""
        self._sums, self._counts = dict(other._sums), dict(other._counts)

    def means(self) -> list[Tensor]:
        """One (...) a block that was counted, in order."""
        return [self._sums[block] / self._counts[block] for block in sorted(self._sums)]


class MeanWeights(BlockMeans):
    """The mean weight of every expert; a `model.Watch`."""

    def __call__(self, block: int, normed: Tensor, routing: Routing | None) -> None:
        """Counts these tokens in, where there is a router."""
        if routing is not None:
            self.add(block, routing.weights, torch.float64)

    def by_block(self) -> list[list[float]] | None:
        """One list a block with a router, in order; None if there was none."""
        return [mean.tolist() for mean in self.means()] or None


class MeanInputs(BlockMeans):
    """The mean of what the router reads (D,); a `model.Watch`."""

    def __call__(self, block: int, normed: Tensor, routing: Routing | None) -> None:
        """Counts these tokens in."""
        self.add(block, normed, torch.float32)
