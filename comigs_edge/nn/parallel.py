"""Parallel experts: each its own small SwiGLU beside the frozen MLP ("parallel adapter", He et al. 2022, arXiv:2110.04366).

    y = MLP(x) + s sum_e w_e D_e (silu(G_e x) * (U_e x))

The file keeps the bytes of the frozen MLP; only the small matrices are new. D starts at zero, so training starts at the base.

Shapes: N tokens, D width, E experts, W width of an expert's hidden layer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.fake import straight_through


class ParallelExpert(NamedTuple):
    """The matrices of one expert in one block."""

    gate: Tensor  # (W, D)
    up: Tensor  # (W, D)
    down: Tensor  # (D, W)


def small_experts(
    normed: Tensor, experts: list[ParallelExpert], weights: Tensor | None, factor: float, format_name: str | None
) -> Tensor:  # (N, D) -> (N, D)
    """What the experts add to the frozen MLP, whose normed input is `normed`, with their routing `weights` (N, E).

    Their matrices are fake quantised if a format is named; `weights` is None for one expert alone. All experts are
    computed for every token: they are small, and one that was not chosen has a weight of zero. A zero expert has the last column
    of `weights`, then (N, E + 1), and adds nothing.
    """
    wide = [each.gate for each in experts] + [each.up for each in experts]
    gate_up = quantise_weight(torch.cat(wide), 1.0, format_name).to(normed.dtype)  # (2 E W, D), rounded row by row
    down = torch.cat([quantise_weight(each.down, factor, format_name) for each in experts], dim=1).to(normed.dtype)  # (D, E W)
    gate, up = F.linear(normed, gate_up).chunk(2, dim=1)
    hidden = F.silu(gate) * up  # (N, E W)
    if weights is not None:
        theirs = weights[:, : len(experts), None].to(hidden.dtype)  # (N, E, 1)
        hidden = (hidden.view(len(hidden), len(experts), -1) * theirs).flatten(1)
    return F.linear(hidden, down)


def quantise_weight(weight: Tensor, factor: float, format_name: str | None) -> Tensor:
    """factor * weight as the file holds it; the rounding is passed straight through to the gradient."""
    scaled = weight if factor == 1.0 else weight * factor
    return scaled if format_name is None else straight_through(scaled, format_name)
