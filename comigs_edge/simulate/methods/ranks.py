"""Devices of unequal rank: low-rank pairs, zero-padded and cut; for HetLoRA and FlexLoRA. Without torch.

Shapes: R rank of a device, M largest rank, A is (R, in), B is (out, R).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from comigs_edge.nn.experts import ExpertsConfig
from coordinator.protocol.wire import Arrays

GAMMA = 0.99  # of HetLoRA; its least pruning, a rank at a time where there are few
Floats = npt.NDArray[np.float32]


def match_parameters(plain: ExpertsConfig, specialists: int) -> ExpertsConfig:
    """One expert with the rank of all experts together: equal parameters.

    alpha grows with the square root of the rank, so that alpha / sqrt(rank) is the same on every device, that of `fedavg`:
    a factor that differed would make equal products different updates.
    """
    factor = 1 + specialists
    alone = replace(plain, num_specialists=0, experts_per_token=1, rank=plain.rank * factor)
    return replace(alone, alpha=plain.alpha * (factor / 2) ** 0.5)


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names of A and B of every low-rank update, in order."""
    return [(name, name.removesuffix("a") + "b") for name in sorted(names) if name.endswith(".lora_a")]


def pruned(arrays: Arrays, rank: int) -> Arrays:
    """The first `rank` ranks of every pair, zeros in place of the others."""
    kept = {name: array.copy() for name, array in arrays.items()}
    for name_a, name_b in pairs(arrays):
        kept[name_a][rank:], kept[name_b][:, rank:] = 0, 0
    return kept


def smaller(rank: int) -> int:
    """The rank to which HetLoRA prunes this one."""
    return max(1, int(GAMMA * rank))


def pad(a: Floats, b: Floats, rank: int) -> tuple[Floats, Floats]:
    """A (R, in) and B (out, R) with zeros up to `rank`."""
    more = rank - len(a)
    return np.pad(a, ((0, more), (0, 0))), np.pad(b, ((0, 0), (0, more)))


def cut(arrays: Arrays, like: Arrays) -> Arrays:
    """The first ranks of arrays of the largest rank, as many as `like` has."""
    return {name: arrays[name][tuple(slice(0, size) for size in array.shape)] for name, array in like.items()}
