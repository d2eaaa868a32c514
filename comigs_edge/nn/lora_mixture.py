"""The mixture of LoRA experts, with the products of the frozen MLP shared between them.

Every expert is the frozen MLP with its own low-rank updates. As the weights of a token sum to 1, the frozen MLP is
computed once for all E experts:

    y = W2 sum_e w_e h_e + s sum_e w_e B2_e A2_e h_e,   h_e = silu(W1 x + s B1_e A1_e x) * (W3 x + s B3_e A3_e x)

Shapes: N tokens, M tokens of a chunk, D width, F hidden width, E experts, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comigs_edge.nn.lora import LoRA, LoRAExpert, group
from comigs_edge.nn.mlp import Frozen, Pass, swiglu, swiglu_backward
from comigs_edge.nn.routing import Routing
from comigs_edge.nn.tensors import Buffers, accumulate, add, at, chunks, zeros


def mixture(
    x: Tensor, mlp: Frozen, experts: list[LoRAExpert], routing: Routing | None, factor: float, purpose: Pass
) -> Tensor:  # (N, D) -> (N, D)
    """The mixture's output for the normed input `x`.

    `routing` is None for one expert alone; `factor` is the scale of every low-rank update. The products are computed in
    the type of `x` and of the frozen weights; the updates may be more precise, and so are their gradients.
    """
    weights, sparse = None, False
    if routing is not None:
        weights = routing.weights.to(x.dtype)
        # A GPU computes every expert for every token: to count those that were chosen would make the processor wait.
        sparse = routing.weights is not routing.probabilities and not x.is_cuda
    updates = [tensor for expert in experts for update in expert for tensor in update]
    out: Tensor = _Mixture.apply(x, weights, mlp, factor, sparse, purpose, *updates)  # type: ignore[no-untyped-call]
    return out


class _Mixture(torch.autograd.Function):
    """Forward and backward of the mixture, `CHUNK` tokens at a time.

    Only the input and the routing weights are kept, and what gate and up of the frozen MLP give if that is asked for; the
    experts' hidden layers are computed again for the backward pass. No gradient is ever formed for the frozen matrices,
    and none for the experts while only the router learns.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor | None, mlp: Frozen, factor: float, sparse: bool, purpose: Pass, *updates: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weights, *updates)
        ctx.mlp, ctx.factor, ctx.sparse, ctx.buffers = mlp, factor, sparse, purpose.buffers
        ctx.learns = any(update.requires_grad for update in updates)
        ctx.kept = None if purpose.kept is None else purpose.buffers.rows(purpose.kept, x, len(mlp.gate_up))
        out = torch.empty_like(x)
        if purpose.graph_only:
            return out
        chunk = _Chunk(mlp, factor, sparse, group(updates), x.dtype, purpose.buffers)
        for rows in chunks(len(x)):
            base = chunk.buffers.rows("base", x[rows], len(mlp.gate_up)) if ctx.kept is None else ctx.kept[rows]
            torch.mm(x[rows], mlp.gate_up.T, out=base)
            chunk.forward(x[rows], base, at(weights, rows), out[rows])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, *updates = ctx.saved_tensors
        mlp, chunk = ctx.mlp, _Chunk(ctx.mlp, ctx.factor, ctx.sparse, group(updates), x.dtype, ctx.buffers)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weights = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        grads = zeros(updates) if ctx.learns else []
        for rows in chunks(len(x)):
            base = at(ctx.kept, rows)
            if base is None:
                base = torch.mm(x[rows], mlp.gate_up.T, out=ctx.buffers.rows("base", x[rows], len(mlp.gate_up)))
            outputs = at(grad_x, rows), at(grad_weights, rows), group(grads)
            chunk.backward(x[rows], base, at(weights, rows), grad[rows], *outputs)
        others: list[None] = [None] * (len(ctx.needs_input_grad) - 2 - len(grads))  # all that has no gradient
        return grad_x, grad_weights, *others, *grads


class _Chunk:
    """The arithmetic on one chunk of M tokens. `sparse`: a weight of zero means that the expert is not computed."""

    def __init__(
        self, mlp: Frozen, factor: float, sparse: bool, experts: list[LoRAExpert], dtype: torch.dtype, buffers: Buffers
    ) -> None:
        self.buffers = buffers
        self.gate_up, self.down, self.factor, self.sparse = mlp.gate_up, mlp.down, factor, sparse
        self.experts = [LoRAExpert(*(LoRA(update.a.to(dtype), update.b.to(dtype)) for update in expert)) for expert in experts]
        self.ff_width, self.rank = mlp.down.shape[1], experts[0].gate.a.shape[0]
        # The small matrices of all experts side by side: one product each instead of one for every expert.
        self.gate_up_a = torch.cat([a for e in self.experts for a in (e.gate.a, e.up.a)])  # (E 2R, D)
        self.down_b = torch.cat([e.down.b for e in self.experts], dim=1)  # (D, E R)

    def forward(self, x: Tensor, base: Tensor, weights: Tensor | None, out: Tensor) -> None:
        """Writes `out` (M, D); `base` (M, 2F) is what gate and up of the frozen MLP give."""
        low = x @ self.gate_up_a.T  # (M, E 2R)
        mixed = self.buffers.rows("mixed", x, self.ff_width).zero_()
        low_down = x.new_zeros(len(x), self.down_b.shape[1])  # (M, E R)
        for index, expert in enumerate(self.experts):
            rows, weight = self._rows(weights, index)
            hidden = swiglu(*self._gate_up(base, low, index, rows), self.buffers)
            # The weight goes into the small product: a pass over the hidden layer less.
            small = hidden @ expert.down.a.T
            low_down[rows, self._ranks(index)] = small if weight is None else small.mul_(weight)
            add(mixed, rows, hidden, weight)
        torch.mm(mixed, self.down.T, out=out)
        out.addmm_(low_down, self.down_b.T, alpha=self.factor)

    def backward(
        self, x: Tensor, base: Tensor, weights: Tensor | None, grad: Tensor, grad_x: Tensor | None,
        grad_weights: Tensor | None, grads: list[LoRAExpert],
    ) -> None:  # fmt: skip
        """Writes `grad_x` (M, D) and `grad_weights` (M, E), adds to `grads`; each may be missing (None, empty)."""
        low = x @ self.gate_up_a.T  # (M, E 2R)
        grad_mixed = torch.mm(grad, self.down, out=self.buffers.rows("mixed", x, self.ff_width))  # (M, F)
        grad_low_down = (grad @ self.down_b).mul_(self.factor)  # (M, E R)
        grad_base, grad_low = self.buffers.rows("grad_base", x, 2 * self.ff_width).zero_(), torch.zeros_like(low)
        for index, expert in enumerate(self.experts):
            rows, weight = self._rows(weights, index)
            gate, up = self._gate_up(base, low, index, rows)
            small = grad_low_down[rows, self._ranks(index)]  # (M', R)
            grad_hidden = torch.addmm(
                grad_mixed[rows], small, expert.down.a, out=self.buffers.rows("grad_hidden", gate, self.ff_width)
            )
            if grads or grad_weights is not None:
                hidden = swiglu(gate, up, self.buffers)
            if grad_weights is not None:
                grad_weights[rows, index] = torch.linalg.vecdot(grad_hidden, hidden)
            if grads:
                down = grads[index].down
                accumulate(down.a, _weigh(small, weight).T, hidden)
                accumulate(down.b, grad[rows].T, _weigh(hidden @ expert.down.a.T, weight), self.factor)
            grad_both = swiglu_backward(gate, up, grad_hidden, self.buffers)
            add(grad_base, rows, grad_both, weight)
            self._backward_low(index, rows, weight, low, grad_both, grad_low, grads)
        if grads:
            grad_a = grad_low.T @ x  # (E 2R, D)
            for update, part in zip(
                (each for expert in grads for each in expert[:2]), torch.split(grad_a, self.rank), strict=True
            ):
                update.a.add_(part)
        if grad_x is not None:
            torch.mm(grad_base, self.gate_up, out=grad_x)
            grad_x.addmm_(grad_low, self.gate_up_a)

    def _backward_low(
        self, index: int, rows: Tensor | slice, weight: Tensor | None, low: Tensor, grad_both: Tensor, grad_low: Tensor,
        grads: list[LoRAExpert],
    ) -> None:  # fmt: skip
        """Through the updates of gate and up of one expert; their gradients `grad_both` (M', 2F) are not weighted yet."""
        expert = self.experts[index]
        for offset, update, grad in zip((0, 1), expert[:2], grad_both.chunk(2, dim=1), strict=True):
            ranks = self._ranks(2 * index + offset)
            grad_low[rows, ranks] = _weigh((grad @ update.b).mul_(self.factor), weight)
            if grads:
                accumulate(grads[index][offset].b, grad.T, _weigh(low[rows, ranks], weight), self.factor)

    def _gate_up(self, base: Tensor, low: Tensor, index: int, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Gate and up of one expert before the activation, (M', F) each: its M' tokens."""
        result = []
        for offset, update in enumerate(self.experts[index][:2]):
            wide = base[rows, offset * self.ff_width : (offset + 1) * self.ff_width]
            small = low[rows, self._ranks(2 * index + offset)]
            out = self.buffers.rows(("gate", "up")[offset], wide, self.ff_width)
            result.append(torch.addmm(wide, small, update.b.T, alpha=self.factor, out=out))
        return result[0], result[1]

    def _ranks(self, index: int) -> slice:
        return slice(self.rank * index, self.rank * (index + 1))

    def _rows(self, weights: Tensor | None, index: int) -> tuple[Tensor | slice, Tensor | None]:
        """The M' tokens that expert `index` computes, all as a slice or their numbers, and their weights (M', 1)."""
        if weights is None:
            return slice(None), None
        rows = weights[:, index].nonzero().squeeze(1) if self.sparse else slice(None)
        return rows, weights[rows, index, None]


def _weigh(values: Tensor, weight: Tensor | None) -> Tensor:
    return values if weight is None else values * weight
