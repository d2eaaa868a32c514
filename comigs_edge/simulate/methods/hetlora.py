"""HetLoRA (Cho et al. 2024, arXiv:2401.06432): devices of unequal rank; zero padding, weights by norm, truncation.

A and B are zero-padded to the largest rank and averaged separately, each device's pair weighted by the Frobenius norm of its
product BA; a device takes back its first ranks. Devices prune their own rank: a penalty (`pruning.py`) draws the last ranks to
zero, and a device on which they have shrunk in a round goes on without them. A rank here is that of all pairs of a device, by the
sum over them. The CoMiGS paper's code weighs A and B by their own norms instead.
"""

from __future__ import annotations

import numpy as np

from comigs_edge.simulate.methods.method import Method, Round, all_experts
from comigs_edge.simulate.methods.ranks import Floats, cut, match_parameters, pad, pairs, pruned, smaller
from coordinator.protocol.aggregate import Mean
from coordinator.protocol.rounds import ONE
from coordinator.protocol.wire import Arrays

RANK = "rank"  # name in a device's memory


def product_norm(a: Floats, b: Floats) -> float:
    """Frobenius norm of BA without forming it: |BA|^2 = sum((B'B) * (AA'))."""
    return float(np.sqrt(max(0.0, ((b.T @ b).astype(np.float64) * (a @ a.T)).sum())))


def prune(before: Arrays, after: Arrays, memory: Arrays) -> int:
    """The rank with which a device goes on; its memory keeps it."""
    rank = int(memory[RANK][0]) if RANK in memory else max(len(after[name]) for name, _ in pairs(after))
    if last_ranks(after, rank) < last_ranks(before, rank):
        rank = smaller(rank)
    memory[RANK] = np.array([rank], np.float32)
    return rank


def last_ranks(arrays: Arrays, rank: int) -> float:
    """How large the ranks are that would be pruned next: the norms of their A and B, sum over all pairs of the products."""
    last = slice(smaller(rank), rank)
    norm = np.linalg.norm
    return float(sum(norm(arrays[name_b][:, last]) * norm(arrays[name_a][last]) for name_a, name_b in pairs(arrays)))


def exchange(state: Round) -> list[Arrays]:
    """The padded weighted mean of what was not pruned, cut to each device's rank."""
    after = state.after()
    ranks = [prune(*each) for each in zip(state.before, after, state.memories, strict=True)]
    after = [pruned(arrays, rank) for arrays, rank in zip(after, ranks, strict=True)]
    mean: Arrays = {}
    for name_a, name_b in pairs(after[0]):
        rank = max(len(arrays[name_a]) for arrays in after)
        norms = [product_norm(arrays[name_a], arrays[name_b]) for arrays in after]
        total, running = sum(norms), Mean()
        for arrays, norm in zip(after, norms, strict=True):
            a, b = pad(arrays[name_a], arrays[name_b], rank)
            running.add({name_a: a, name_b: b}, max(1, round(ONE * (norm / total if total else 1 / len(after)))))
        mean |= running.apply({name_a: np.zeros_like(a), name_b: np.zeros_like(b)})
    return [pruned(cut(mean, own), rank) for own, rank in zip(state.before, ranks, strict=True)]


METHODS = (
    Method(
        "hetlora",
        "FedAvg of unequal ranks: padded, weighted by norm, cut",
        match_parameters,
        all_experts,
        exchange,
        lora_only=True,
        prunes=True,
    ),
)
