"""Low-rank updates of frozen matrices (LoRA, Hu et al. 2021, arXiv:2106.09685).

W becomes W + scale * B A (`experts.py` has the scale). B starts at zero, so training starts at the base.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def group(tensors: Sequence[Tensor]) -> list[LoRAExpert]:
    """The experts whose tensors these are, six each: A and B of gate, up and down."""
    updates = [LoRA(a, b) for a, b in zip(tensors[::2], tensors[1::2], strict=True)]
    return [LoRAExpert(*updates[start : start + 3]) for start in range(0, len(updates), 3)]


def merge(weight: Tensor, lora: LoRA, factor: float, out: Tensor | None = None) -> Tensor:
    """W + factor * B A, (out, in); in `out` if that is given."""
    merged: Tensor = torch.addmm(weight, lora.b, lora.a, alpha=factor, out=out)
    return merged
