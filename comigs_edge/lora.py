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


def initial(out_width: int, in_width: int, rank: int, generator: torch.Generator) -> LoRA:
    """A drawn uniformly from +-1/sqrt(in) (kaiming_uniform with a = sqrt(5), as the paper's code), B zero."""
    bound = 1 / math.sqrt(in_width)
    a = torch.rand(rank, in_width, generator=generator) * (2 * bound) - bound
    return LoRA(a, torch.zeros(out_width, rank))


def merge(weight: Tensor, lora: LoRA, factor: float) -> Tensor:
    """W + factor * B A, (out, in); a new tensor."""
    return torch.addmm(weight, lora.b, lora.a, alpha=factor)
