"""How fast each expert learns, by how much the router makes of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from comigs_edge.nn.adapters import Adapters


def rate_factors(adapters: Adapters, scores: Sequence[Sequence[float]] | None) -> dict[Tensor, float]:
    """Factors on the learning rates of the experts' tensors: E times the expert's mean weight in that block, by the `scores`.

    Without those there are none.
    """
    factors: dict[Tensor, float] = {}
    num_experts = adapters.layout.num_experts  # a zero expert has a score and nothing that learns
    for block, of_experts in enumerate(scores or (), adapters.first_block):
        for tensors, score in zip(adapters.by_expert(block), of_experts[:num_experts], strict=True):
            factors |= dict.fromkeys(tensors, num_experts * score)
    return factors
