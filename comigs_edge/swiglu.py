"""The gated activation silu(g) * u and its derivative, in buffers that are reused (M tokens, F hidden width)."""

from __future__ import annotations

import torch
from torch import Tensor

from comigs_edge.buffers import scratch


def swiglu(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """silu(gate) * up and the slope of silu, (M, F) each; `gate` becomes silu(gate)."""
    sigmoid = torch.sigmoid(gate, out=scratch("sigmoid", gate, gate.shape[1]))
    silu = gate.mul_(sigmoid)
    hidden = torch.mul(silu, up, out=scratch("hidden", gate, gate.shape[1]))
    # silu'(g) = s + g s (1 - s) = s + silu - silu s
    return hidden, torch.addcmul(sigmoid, silu, sigmoid, value=-1, out=sigmoid).add_(silu)


def swiglu_backward(silu: Tensor, up: Tensor, slope: Tensor, grad_hidden: Tensor) -> None:
    """The gradient of the gate in place of `silu`, that of up in place of `up`."""
    slope.mul_(up)
    torch.mul(silu, grad_hidden, out=up)
    torch.mul(slope, grad_hidden, out=silu)
