"""Activation checkpointing: what a function computes on the way is not kept but computed again for the backward pass.

As torch's reentrant `checkpoint`, piece by piece, without its compiler (`training/adamw.py` says why) and its random state. The
kind that is not reentrant was measured to keep more memory than none at all (834 against 662 MB).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from comigs_edge.nn.tensors import Buffers

Function = Callable[[int, Tensor], tuple[Tensor, Tensor | None]]  # number of the piece, the piece


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, function: Function, sizes: list[int], buffers: Buffers, name: str
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x)
        ctx.function, ctx.sizes = function, sizes
        out, other = buffers.rows(name, x, x.shape[1]), None
        for number, (piece, target) in enumerate(zip(torch.split(x, sizes), torch.split(out, sizes), strict=True)):
            result, other = function(number, piece)
            target.copy_(result)
        return out, other

    @staticmethod
    def backward(ctx: Any, grad: Tensor, other_grad: Tensor | None) -> tuple[Tensor, None, None, None, None]:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        pieces = zip(*(torch.split(tensor, ctx.sizes) for tensor in (x, grad, grad_x)), strict=True)
        for number, (piece, piece_grad, target) in enumerate(pieces):
            leaf = piece.detach().requires_grad_(True)
            with torch.enable_grad():
                out, other = ctx.function(number, leaf)
            outputs, grads = [out], [piece_grad]
            if other is not None and other.requires_grad and other_grad is not None:
                outputs, grads = [out, other], [piece_grad, other_grad]
            torch.autograd.backward(outputs, grads)
            assert leaf.grad is not None
            target.copy_(leaf.grad)
        return grad_x, None, None, None, None


def recompute(
    x: Tensor, function: Function, sizes: list[int], buffers: Buffers, name: str
) -> tuple[Tensor, Tensor | None]:
    """`function` of the pieces of `x` (N, D), `sizes` rows each, and its second result for the last piece.

    `x` must ask for a gradient; other tensors that the function uses get theirs as well. The result lies in the buffer
    called `name`, which the next call for it overwrites.
    """
    out: tuple[Tensor, Tensor | None] = _Recomputed.apply(x, function, sizes, buffers, name)  # type: ignore[no-untyped-call]
    return out
