"""The gated activation silu(g) * u and its gradient (M tokens, F hidden width), and what a pass through an MLP is given."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from comigs_edge.nn.tensors import Buffers


def swiglu(gate: Tensor, up: Tensor, buffers: Buffers) -> Tensor:
    """silu(gate) * up, (M, F), in a buffer that the next call overwrites."""
    hidden = buffers.rows("hidden", gate, gate.shape[1])
    torch.ops.aten.silu.out(gate, out=hidden)
    return hidden.mul_(up)


def swiglu_backward(gate: Tensor, up: Tensor, grad_hidden: Tensor, buffers: Buffers) -> Tensor:
    """The gradients of gate and up side by side, (M, 2 F), in a buffer that the next call overwrites.

    `grad_hidden` is overwritten.
    """
    width = gate.shape[1]
    grads = buffers.rows("grad gate_up", gate, 2 * width)
    grad_gate, grad_up = grads[:, :width], grads[:, width:]
    torch.ops.aten.silu.out(gate, out=grad_up).mul_(grad_hidden)
    torch.ops.aten.silu_backward.grad_input(grad_hidden.mul_(up), gate, grad_input=grad_gate)
    return grads


class Frozen(NamedTuple):
    """The frozen weights of a block's MLP."""

    gate_up: Tensor  # (2F, D)
    down: Tensor  # (D, F)


class Pass(NamedTuple):
    """What a pass through a block's MLP is for, and the memory it works in.

    `kept` names the buffer that keeps what gate and up give until the backward pass; None: they are computed again then.
    `graph_only` asks for no output, because only the gradient is wanted and `kept` holds its values already. `block_format`
    names the format of the exported file, in whose weights experts are computed; None: in the weights as they are.
    """

    buffers: Buffers
    block_format: str | None = None
    kept: str | None = None
    graph_only: bool = False
