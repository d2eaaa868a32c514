"""Activation checkpointing: what a block computes on the way is not kept but computed again for the backward pass.

`Policy` says what is kept and runs a block accordingly; the mathematics is in `model.py`. It works as torch's reentrant
`checkpoint`, piece by piece, without its compiler (`training/adamw.py` says why) and its random state. The kind that is not
reentrant was measured to keep more memory than none at all (834 against 662 MB).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comigs_edge.nn.attention import Window
from comigs_edge.nn.mlp import Pass
from comigs_edge.nn.tensors import Buffers
from profiles.cost import PIECES, Checkpointing

Block = Callable[[Window, Tensor, Pass], tuple[Tensor, Tensor | None]]  # residual stream (N, D) -> (N, D), load-balance loss
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


def recompute(x: Tensor, function: Function, sizes: list[int], buffers: Buffers, name: str) -> tuple[Tensor, Tensor | None]:
    """`function` of the pieces of `x` (N, D), `sizes` rows each, and its second result for the last piece.

    `x` must ask for a gradient; other tensors that the function uses get theirs as well. The result lies in the buffer
    called `name`, which the next call for it overwrites.
    """
    out: tuple[Tensor, Tensor | None] = _Recomputed.apply(x, function, sizes, buffers, name)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True)
class Policy:
    """What of a forward pass is kept for the backward pass, and in which memory."""

    checkpointing: Checkpointing
    learns: bool  # whether a backward pass follows
    buffers: Buffers
    block_format: str | None = None  # as in `Pass`

    @property
    def recomputes(self) -> bool:
        """Whether blocks run again for the backward pass."""
        return self.checkpointing != "none"

    def run(self, block: Block, number: int, where: Window, x: Tensor, whole: bool = False) -> tuple[Tensor, Tensor | None]:
        """Block `number` of `x`, which asks for a gradient if blocks are recomputed and learn; `whole`: all rows at once."""
        if not self.recomputes:
            return block(where, x, self._purpose(number, 0))
        # A few rows at a time: less memory, and in the processor's cache.
        windows = [where] if whole else where.pieces(PIECES[self.checkpointing])

        def run_piece(piece: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
            return block(windows[piece], x, self._purpose(number, piece))

        # Without gradients the input of a block is not needed again: two buffers take turns.
        name = f"residual {number if self.learns else number % 2}"
        return recompute(x, run_piece, [rows * time for rows, time in (each.size for each in windows)], self.buffers, name)

    def _purpose(self, number: int, piece: int) -> Pass:
        kept = f"gate_up {number}.{piece}" if self.learns and self.checkpointing != "block" else None
        # A recomputed block runs without gradients first; with them it runs again for the backward pass, which has no use for
        # its output.
        graph_only = self.learns and self.recomputes and torch.is_grad_enabled()
        return Pass(self.buffers, self.block_format, kept, graph_only)
