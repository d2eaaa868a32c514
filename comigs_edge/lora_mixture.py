"""The mixture of LoRA experts, with the products of the frozen MLP shared between them.

Every expert is the frozen MLP with its own low-rank updates. As the weights of a token sum to 1, the frozen MLP is
computed once, whatever the number of experts E:

    y = W2 sum_e w_e h_e + s sum_e w_e B2_e A2_e h_e,   h_e = silu(W1 x + s B1_e A1_e x) * (W3 x + s B3_e A3_e x)

Shapes: N tokens, M tokens of a chunk, D width, F hidden width, E experts, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from comigs_edge.buffers import add, at, chunks, scratch
from comigs_edge.lora import LoRA, LoRAExpert
from comigs_edge.moe import Frozen, Routing
from comigs_edge.norm import inverse_rms, rms_norm_backward
from comigs_edge.swiglu import swiglu, swiglu_backward


def mixture(
    x: Tensor, mlp: Frozen, experts: list[LoRAExpert], routing: Routing | None, factor: float
) -> Tensor:  # (N, D) -> (N, D)
    """The mixture's output for the residual stream `x`, before its norm.

    `routing` is None for one expert alone; `factor` is the scale of every low-rank update.
    """
    weights, sparse = None, False
    if routing is not None:
        weights, sparse = routing.weights, routing.weights is not routing.probabilities
    updates = [tensor for expert in experts for update in expert for tensor in update]
    out: Tensor = _Mixture.apply(x, weights, mlp, factor, sparse, *updates)  # type: ignore[no-untyped-call]
    return out


class _Mixture(torch.autograd.Function):
    """Forward and backward of the mixture, `CHUNK` tokens at a time.

    Only the input and the routing weights are kept; hidden layers are computed again for the backward pass. No gradient
    is ever formed for the frozen matrices, and none for the experts while only the router learns.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor | None, mlp: Frozen, factor: float, sparse: bool, *updates: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weights, *updates)
        ctx.mlp, ctx.factor, ctx.sparse = mlp, factor, sparse
        chunk = _Chunk(mlp, factor, sparse, _experts(updates))
        out = torch.empty_like(x)
        for rows in chunks(len(x)):
            normed = x[rows] * inverse_rms(x[rows], mlp.eps) * mlp.norm
            chunk.forward(normed, at(weights, rows), out[rows])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, *updates = ctx.saved_tensors
        mlp, chunk = ctx.mlp, _Chunk(ctx.mlp, ctx.factor, ctx.sparse, _experts(updates))
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weights = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        grads: list[Tensor] = [torch.zeros_like(update) for update in updates] if any(ctx.needs_input_grad[5:]) else []
        for rows in chunks(len(x)):
            inverse = inverse_rms(x[rows], mlp.eps)
            normed, target = x[rows] * inverse * mlp.norm, at(grad_x, rows)
            chunk.backward(normed, at(weights, rows), grad[rows], target, at(grad_weights, rows), _experts(grads))
            if target is not None:
                target.copy_(rms_norm_backward(target, x[rows], mlp.norm, inverse))
        none: list[Tensor | None] = [None] * len(updates)
        return grad_x, grad_weights, None, None, None, *(grads or none)


class _Chunk:
    """The arithmetic on one chunk of M tokens. `sparse`: a weight of zero means that the expert is not computed."""

    def __init__(self, mlp: Frozen, factor: float, sparse: bool, experts: list[LoRAExpert]) -> None:
        self.gate_up, self.down, self.factor, self.sparse, self.experts = mlp.gate_up, mlp.down, factor, sparse, experts
        self.ff_width, self.rank = mlp.down.shape[1], experts[0].gate.a.shape[0]
        # The small matrices of all experts side by side: one product each instead of one for every expert.
        self.gate_up_a = torch.cat([a for e in experts for a in (e.gate.a, e.up.a)])  # (E 2R, D)
        self.down_b = torch.cat([e.down.b for e in experts], dim=1)  # (D, E R)

    def forward(self, x: Tensor, weights: Tensor | None, out: Tensor) -> None:
        base = torch.mm(x, self.gate_up.T, out=scratch("base", x, 2 * self.ff_width))  # (M, 2F)
        low = x @ self.gate_up_a.T  # (M, E 2R)
        mixed = scratch("mixed", x, self.ff_width).zero_()
        low_down = x.new_zeros(len(x), self.down_b.shape[1])  # (M, E R)
        for index, expert in enumerate(self.experts):
            rows = self._rows(weights, index)
            gate, up = self._gate_up(base, low, index, rows)
            hidden = F.silu(gate, inplace=True).mul_(up)
            if weights is not None:
                hidden *= weights[rows, index, None]
            low_down[rows, self._ranks(index)] = hidden @ expert.down.a.T
            add(mixed, rows, hidden)
        torch.mm(mixed, self.down.T, out=out)
        out.addmm_(low_down, self.down_b.T, alpha=self.factor)

    def backward(
        self, x: Tensor, weights: Tensor | None, grad: Tensor, grad_x: Tensor | None, grad_weights: Tensor | None,
        grads: list[LoRAExpert],
    ) -> None:  # fmt: skip
        """Writes `grad_x` (M, D) and `grad_weights` (M, E), adds to `grads`; each may be missing (None, empty)."""
        base = torch.mm(x, self.gate_up.T, out=scratch("base", x, 2 * self.ff_width))  # (M, 2F)
        low = x @ self.gate_up_a.T  # (M, E 2R)
        grad_mixed = torch.mm(grad, self.down, out=scratch("mixed", x, self.ff_width))  # (M, F)
        grad_low_down = (grad @ self.down_b).mul_(self.factor)  # (M, E R)
        grad_base, grad_low = scratch("grad_base", x, 2 * self.ff_width).zero_(), torch.zeros_like(low)
        for index, expert in enumerate(self.experts):
            rows = self._rows(weights, index)
            gate, up = self._gate_up(base, low, index, rows)
            hidden, slope = swiglu(gate, up)
            grad_hidden = torch.addmm(
                grad_mixed[rows], grad_low_down[rows, self._ranks(index)], expert.down.a,
                out=scratch("grad_hidden", gate, self.ff_width),
            )  # fmt: skip
            if grad_weights is not None:
                grad_weights[rows, index] = torch.linalg.vecdot(grad_hidden, hidden)
            if weights is not None:
                weight = weights[rows, index, None]
                grad_hidden.mul_(weight)
                hidden.mul_(weight)
            if grads:
                small = hidden @ expert.down.a.T  # (M', R)
                grads[index].down.a.addmm_(grad_low_down[rows, self._ranks(index)].T, hidden)
                grads[index].down.b.addmm_(grad[rows].T, small, alpha=self.factor)
            swiglu_backward(gate, up, slope, grad_hidden)
            self._backward_gate_up(index, rows, low, gate, up, grad_base, grad_low, grads)
        if grads:
            grad_a = grad_low.T @ x  # (E 2R, D)
            for index, (gate_a, up_a) in enumerate(_pairs(torch.split(grad_a, self.rank))):
                grads[index].gate.a.add_(gate_a)
                grads[index].up.a.add_(up_a)
        if grad_x is not None:
            torch.mm(grad_base, self.gate_up, out=grad_x)
            grad_x.addmm_(grad_low, self.gate_up_a)

    def _backward_gate_up(
        self, index: int, rows: Tensor | slice, low: Tensor, grad_gate: Tensor, grad_up: Tensor,
        grad_base: Tensor, grad_low: Tensor, grads: list[LoRAExpert],
    ) -> None:  # fmt: skip
        expert, start = self.experts[index], 2 * self.rank * index
        for offset, part, update, grad in ((0, 0, expert.gate, grad_gate), (1, self.ff_width, expert.up, grad_up)):
            ranks = slice(start + offset * self.rank, start + (offset + 1) * self.rank)
            add(grad_base[:, part : part + self.ff_width], rows, grad)
            grad_low[rows, ranks] = (grad @ update.b).mul_(self.factor)
            if grads:
                target = grads[index].up if offset else grads[index].gate
                target.b.addmm_(grad.T, low[rows, ranks], alpha=self.factor)

    def _gate_up(self, base: Tensor, low: Tensor, index: int, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Gate and up of one expert before the activation, (M', F) each: its M' tokens."""
        expert, start = self.experts[index], 2 * self.rank * index
        result = []
        for name, part, update in (("gate", 0, expert.gate), ("up", 1, expert.up)):
            wide = base[rows, part * self.ff_width : (part + 1) * self.ff_width]
            small = low[rows, start + part * self.rank : start + (part + 1) * self.rank]
            out = scratch(name, wide, self.ff_width)
            result.append(torch.addmm(wide, small, update.b.T, alpha=self.factor, out=out))
        return result[0], result[1]

    def _ranks(self, index: int) -> slice:
        return slice(self.rank * index, self.rank * (index + 1))

    def _rows(self, weights: Tensor | None, index: int) -> Tensor | slice:
        """The tokens that expert `index` computes: all as a slice, or their numbers."""
        if weights is None or not self.sparse:
            return slice(None)
        return weights[:, index].nonzero().squeeze(1)


def _experts(updates: Sequence[Tensor]) -> list[LoRAExpert]:
    """Six tensors an expert: A and B of gate, up and down."""
    loras = [LoRA(a, b) for a, b in _pairs(updates)]
    return [LoRAExpert(*loras[start : start + 3]) for start in range(0, len(loras), 3)]


def _pairs(items: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(items[::2], items[1::2], strict=True))
