"""The gated activation silu(g) * u and its gradient, in buffers that are reused (M tokens, F hidden width)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from comigs_edge.nn.tensors import scratch


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, (M, F)."""
    hidden = scratch("hidden", gate, gate.shape[1])
    torch.ops.aten.silu.out(gate, out=hidden)
    return hidden.mul_(up)


def swiglu_backward(gate: Tensor, up: Tensor, grad_hidden: Tensor) -> Tensor:
    """The gradients of gate and up, side by side (M, 2 F); `grad_hidden` is used up."""
    width = gate.shape[1]
    grads = scratch("grad gate_up", gate, 2 * width)
    grad_gate, grad_up = grads[:, :width], grads[:, width:]
    torch.ops.aten.silu.out(gate, out=grad_up).mul_(grad_hidden)
    torch.ops.aten.silu_backward.grad_input(grad_hidden.mul_(up), gate, grad_input=grad_gate)
    return grads


class Frozen(NamedTuple):
    """The frozen weights of a block's MLP."""

    gate_up: Tensor  # (2F, D)
    down: Tensor  # (D, F)


class Pass(NamedTuple):
    """What a pass through a block's MLP is for.

    `kept` names the buffer that keeps what gate and up give until the backward pass; None: they are computed again then.
    `graph_only` asks for no output, because only the gradient is wanted; what is kept is there already.
    """

    kept: str | None = None
    graph_only: bool = False
