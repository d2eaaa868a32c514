"""Devices of unequal rank: low-rank pairs, zero-padded and cut; for HetLoRA and FlexLoRA. Without torch.

Shapes: R rank of a device, M largest rank, A is (R, in), B is (out, R).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from comigs_edge.nn.experts import ExpertsConfig
from coordinator.protocol.wire import Arrays

Floats = npt.NDArray[np.float32]


def match_parameters(plain: ExpertsConfig, specialists: int) -> ExpertsConfig:
    """One expert with the rank of all experts together: equal parameters.

    alpha grows with the square root of the rank, so that alpha / sqrt(rank) is the same on every device, that of `fedavg`:
    a factor that differed would make equal products different updates.
    """
    factor = 1 + specialists
    alone = replace(plain, num_specialists=0, experts_per_token=1, rank=plain.rank * factor)
    return replace(alone, alpha=plain.alpha * (factor / 2) ** 0.5)


def pairs(arrays: Arrays) -> list[tuple[str, str]]:
    """Names of A and B of every low-rank update, in order."""
    names = sorted(name for name in arrays if name.endswith(".lora_a"))
    return [(name, name.removesuffix("a") + "b") for name in names]


def pad(a: Floats, b: Floats, rank: int) -> tuple[Floats, Floats]:
    """A (R, in) and B (out, R) with zeros up to `rank`."""
    more = rank - len(a)
    return np.pad(a, ((0, more), (0, 0))), np.pad(b, ((0, 0), (0, more)))


def cut(arrays: Arrays, like: Arrays) -> Arrays:
    """The first ranks of arrays of the largest rank, as many as `like` has."""
    return {name: arrays[name][tuple(slice(0, size) for size in array.shape)] for name, array in like.items()}
