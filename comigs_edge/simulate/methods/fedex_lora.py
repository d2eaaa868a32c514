"""FedEx-LoRA (Singhal et al. 2025, arXiv:2410.09432): FedAvg, and beside it what mean(B) mean(A) misses of mean(BA).

The paper adds this residual to the base's weights, which are quantised and shared here: it is a second expert that no step
trains, of the same rank (the paper's own cheaper form, the best approximation by SVD), to which each round's is added. Both count
with half a weight, which a doubled alpha makes whole.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.simulate.methods.flexlora import product_svd
from comigs_edge.simulate.methods.method import Method, Round, all_experts, average, twice_as_large, with_specialists
from comigs_edge.simulate.methods.ranks import pairs
from coordinator.protocol.wire import Arrays

MEAN, REST = "generalist.", "specialist.1."


def with_residual(plain: ExpertsConfig, specialists: int) -> ExpertsConfig:
    """The expert of `fedavg`, and one more like it."""
    alone = twice_as_large(plain, specialists)
    return replace(with_specialists(alone, 1), alpha=2 * alone.alpha)


def is_residual(name: str) -> bool:
    """Whether this is a tensor of the second expert."""
    return name.startswith(REST)


def exchange(state: Round) -> list[Arrays]:
    """The mean of A and of B, and the residual with this round's."""
    mean, after = average(state), state.after()
    shares = np.array(state.weights, np.float64) / sum(state.weights)
    result = mean[0]
    for name_a, name_b in pairs({name: array for name, array in result.items() if name.startswith(MEAN)}):
        rest_a, rest_b = name_a.replace(MEAN, REST), name_b.replace(MEAN, REST)
        left = [share * arrays[name_b] for share, arrays in zip(shares, after, strict=True)] + [-result[name_b], result[rest_b]]
        right = [arrays[name_a] for arrays in after] + [result[name_a], result[rest_a]]
        u, s, vt = product_svd(np.concatenate(left, axis=1), np.concatenate(right))
        rank, root = len(result[rest_a]), np.sqrt(s)
        result[rest_a] = (root[:rank, None] * vt[:rank]).astype(np.float32)
        result[rest_b] = (u[:, :rank] * root[:rank]).astype(np.float32)
    return [dict(result) for _ in mean]


METHODS = (
    Method(
        "fedex-lora", "FedAvg, and what its mean of products misses", with_residual, all_experts, exchange, router="even",
        freezes=is_residual, lora_only=True,
    ),
)  # fmt: skip
