"""HetLoRA (Cho et al. 2024, arXiv:2401.06432): devices of unequal rank; zero padding, weights by norm, truncation.

A and B are zero-padded to the largest rank and averaged separately, each device's pair weighted by the Frobenius norm of its
product BA; a device takes back its first ranks. Not built: the pruning of ranks during training (the paper's regulariser
with gamma). The CoMiGS paper's code weighs A and B by their own norms instead.
"""

from __future__ import annotations

import numpy as np

from comigs_edge.simulate.methods.method import Method, Round, all_experts
from comigs_edge.simulate.methods.ranks import Floats, cut, match_parameters, pad, pairs
from coordinator.protocol.aggregate import Mean
from coordinator.protocol.rounds import ONE
from coordinator.protocol.wire import Arrays


def product_norm(a: Floats, b: Floats) -> float:
    """Frobenius norm of BA without forming it: |BA|^2 = sum((B'B) * (AA'))."""
    return float(np.sqrt(max(0.0, ((b.T @ b).astype(np.float64) * (a @ a.T)).sum())))


def exchange(state: Round) -> list[Arrays]:
    """The padded weighted mean, cut to each device's rank."""
    after = state.after()
    mean: Arrays = {}
    for name_a, name_b in pairs(after[0]):
        rank = max(len(arrays[name_a]) for arrays in after)
        norms = [product_norm(arrays[name_a], arrays[name_b]) for arrays in after]
        total, running = sum(norms), Mean()
        for arrays, norm in zip(after, norms, strict=True):
            a, b = pad(arrays[name_a], arrays[name_b], rank)
            running.add({name_a: a, name_b: b}, max(1, round(ONE * (norm / total if total else 1 / len(after)))))
        mean |= running.apply({name_a: np.zeros_like(a), name_b: np.zeros_like(b)})
    return [cut(mean, own) for own in state.before]


METHODS = (
    Method(
        "hetlora",
        "FedAvg of unequal ranks: padded, weighted by norm, cut",
        match_parameters,
        all_experts,
        exchange,
        lora_only=True,
    ),
)
