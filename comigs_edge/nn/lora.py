"""Low-rank updates of frozen matrices (LoRA, Hu et al. 2021, arXiv:2106.09685).

W becomes W + scale * B A (`layout.py` has the scale). B starts at zero, so training starts at the base.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class LoRA(NamedTuple):
    """One low-rank update; R is its rank."""

    a: Tensor  # (R, in)
    b: Tensor  # (out, R)


class LoRAExpert(NamedTuple):
    """The low-rank updates of one expert in one block."""

    gate: LoRA  # (F, D)
    up: LoRA  # (F, D)
    down: LoRA  # (D, F)


def initial(size: tuple[int, int], generator: torch.Generator, spread: float = 1.0) -> Tensor:
    """A (R, in), drawn uniformly from +-spread/sqrt(in); 1 is kaiming_uniform with a = sqrt(5), as the paper's code."""
    bound = spread / math.sqrt(size[1])
    return torch.rand(size, generator=generator) * (2 * bound) - bound


def merge(weight: Tensor, lora: LoRA, factor: float, out: Tensor | None = None) -> Tensor:
    """W + factor * B A, (out, in); in `out` if that is given."""
    merged: Tensor = torch.addmm(weight, lora.b, lora.a, alpha=factor, out=out)
    return merged
