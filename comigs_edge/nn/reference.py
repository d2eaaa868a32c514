"""The mixture of experts in plain words, both forms: what the fast kernels must equal. Tests and readers use it.

Shapes: N tokens, D width, F hidden width of the base's MLP, W of a parallel expert's, E experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from comigs_edge.nn.lora import LoRAExpert
from comigs_edge.nn.mlp import Frozen
from comigs_edge.nn.parallel import ParallelExpert
from quantize.fake import fake_quantize


def mix_lora(
    x: Tensor, mlp: Frozen, experts: list[LoRAExpert], weights: Tensor, scale: float, block_format: str | None = None
) -> Tensor:  # (N, D) -> (N, D)
    """sum_e w_e MLP_e(x): every expert is the base's MLP with low-rank updates; `weights` (N, E) are the router's."""
    out, (gate, up) = torch.zeros_like(x), mlp.gate_up.chunk(2)
    for number, expert in enumerate(experts):
        pairs = ((gate, expert.gate), (up, expert.up), (mlp.down, expert.down))
        merged = [_round(matrix + scale * update.b @ update.a, block_format) for matrix, update in pairs]
        out = out + weights[:, number, None] * _mlp(x, merged)
    return out


def mix_parallel(
    x: Tensor, mlp: Frozen, experts: list[ParallelExpert], weights: Tensor, scale: float, block_format: str | None = None
) -> Tensor:
    """MLP(x) + sum_e w_e P_e(x): every expert is a small MLP beside the base's; `scale` is a factor on its down."""
    out = _mlp(x, [*mlp.gate_up.chunk(2), mlp.down])
    for number, (gate, up, down) in enumerate(experts):
        small = [_round(matrix, block_format) for matrix in (gate, up, scale * down)]
        out = out + weights[:, number, None] * _mlp(x, small)
    return out


def _mlp(x: Tensor, matrices: list[Tensor]) -> Tensor:
    gate, up, down = matrices
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def _round(weight: Tensor, block_format: str | None) -> Tensor:
    """As an exported file holds it; the gradient is that of the weight before."""
    return weight if block_format is None else weight + (fake_quantize(weight, block_format) - weight).detach()
