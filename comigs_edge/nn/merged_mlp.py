"""One expert's MLP with its low-rank updates merged and the result rounded to the block format of the exported file.

    y = w * (silu(G x) * (U x)) D^T,   G = Q(W1 + s B1 A1), U = Q(W3 + s B3 A3), D = Q(W2 + s B2 A2)

The rounding Q is passed straight through (Bengio et al. 2013, arXiv:1308.3432): the updates get the gradient of the merged
matrix, and by low-rank products alone, dA = s (B^T dY)^T X and dB = s dY^T (X A^T): no gradient of a matrix is formed. Without
updates this is the frozen MLP itself, to which `parallel.py` adds its experts.

Shapes: N tokens, M tokens of a chunk, D width, F hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comigs_edge.nn.lora import LoRAExpert, group, merge
from comigs_edge.nn.mlp import Frozen, Pass, swiglu, swiglu_backward
from comigs_edge.nn.routing import Routing
from comigs_edge.nn.tensors import Buffers, accumulate, add, chunks, zeros
from quantize.fake import fake_quantize_


def frozen_mlp(x: Tensor, mlp: Frozen, purpose: Pass) -> Tensor:  # (N, D) -> (N, D)
    """The frozen MLP's output for the normed input `x`."""
    out: Tensor = _MergedMLP.apply(x, None, None, mlp, 1.0, purpose)  # type: ignore[no-untyped-call]
    return out


def quantised_mixture(
    x: Tensor, mlp: Frozen, experts: list[LoRAExpert], routing: Routing | None, factor: float, purpose: Pass
) -> Tensor:  # (N, D) -> (N, D)
    """As `lora_mixture.mixture`, each expert in the weights that a file in `purpose.block_format` holds."""
    out = torch.zeros((), dtype=x.dtype, device=x.device)
    for index, expert in enumerate(experts):
        weights, rows = None, None
        if routing is not None:
            weights = routing.weights[:, index].to(x.dtype)
            if routing.weights is not routing.probabilities and not x.is_cuda:  # see `lora_mixture.mixture`
                rows = weights.detach().nonzero().squeeze(1)
        updates = [tensor for update in expert for tensor in update]
        each = purpose._replace(kept=None)  # merging costs more than the products that could be kept
        out = out + _MergedMLP.apply(x, weights, rows, mlp, factor, each, *updates)  # type: ignore[no-untyped-call]
    return out


class _MergedMLP(torch.autograd.Function):
    """Forward and backward, `CHUNK` tokens at a time; merged weights and hidden layers are made again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor | None, rows: Tensor | None, mlp: Frozen, factor: float, purpose: Pass,
        *updates: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weights, rows, *updates)
        ctx.mlp, ctx.factor, ctx.purpose = mlp, factor, purpose
        ctx.learns = any(update.requires_grad for update in updates)
        buffers = purpose.buffers
        out = torch.zeros_like(x) if rows is not None else torch.empty_like(x)
        ctx.kept = None if purpose.kept is None else buffers.rows(purpose.kept, x, len(mlp.gate_up))
        if purpose.graph_only:
            return out
        gate_up, down = _merge_expert(mlp, (group(updates)[0] if updates else None), factor, purpose)
        for part in chunks(len(x), rows):
            both = _gate_up(ctx.kept, x, part, len(gate_up), buffers)
            gate, up = torch.mm(x[part], gate_up.T, out=both).chunk(2, dim=1)
            hidden = swiglu(gate, up, buffers)
            if weights is not None:
                hidden *= weights[part, None]
            if rows is None:
                torch.mm(hidden, down.T, out=out[part])
            else:
                out[part] = torch.mm(hidden, down.T, out=buffers.rows("out", hidden, x.shape[1]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, rows, *updates = ctx.saved_tensors
        factor, expert, buffers = ctx.factor, (group(updates)[0] if updates else None), ctx.purpose.buffers
        gate_up, down = _merge_expert(ctx.mlp, expert, factor, ctx.purpose)
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        grad_weights = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        grads = zeros(updates) if ctx.learns else []
        for part in chunks(len(x), rows):
            both = _gate_up(ctx.kept, x, part, len(gate_up), buffers)
            gate, up = (both if ctx.kept is not None else torch.mm(x[part], gate_up.T, out=both)).chunk(2, dim=1)
            grad_hidden = torch.mm(grad[part], down, out=buffers.rows("grad_hidden", gate, gate.shape[1]))
            weight = None if weights is None else weights[part, None]
            hidden = swiglu(gate, up, buffers) if grads or grad_weights is not None else None
            if grad_weights is not None and hidden is not None:
                grad_weights[part] = torch.linalg.vecdot(grad_hidden, hidden)
            if weight is not None:
                grad_hidden.mul_(weight)
            grad_both = swiglu_backward(gate, up, grad_hidden, buffers)
            if expert is not None and grads and hidden is not None:
                sources = (x[part], x[part], hidden if weight is None else hidden.mul_(weight))
                _add_gradients(grads, expert, sources, (*grad_both.chunk(2, dim=1), grad[part]), factor)
            if grad_x is not None and rows is None:
                torch.mm(grad_both, gate_up, out=grad_x[part])
            elif grad_x is not None:
                add(grad_x, part, grad_both @ gate_up)
        others: list[None] = [None] * (len(ctx.needs_input_grad) - 2 - len(grads))  # all that has no gradient
        return grad_x, grad_weights, *others, *grads


def _gate_up(kept: Tensor | None, x: Tensor, part: Tensor | slice, width: int, buffers: Buffers) -> Tensor:
    """Where gate and up of a chunk of tokens are: kept, or in reused memory."""
    return buffers.rows("gate_up", x[part], width) if kept is None else kept[part]


def _merge_expert(mlp: Frozen, expert: LoRAExpert | None, factor: float, purpose: Pass) -> tuple[Tensor, Tensor]:
    """Gate and up (2F, D) and down (D, F) with the updates, in reused memory."""
    if expert is None or purpose.block_format is None:
        return mlp.gate_up, mlp.down
    made = []
    for name, weight, updates in (("gate_up", mlp.gate_up, expert[:2]), ("down", mlp.down, expert[2:])):
        # Always rounded in float32, also where products are computed in bfloat16.
        merged = purpose.buffers.take(f"merged {name}", tuple(weight.shape), updates[0].a)
        for part, old, update in zip(merged.chunk(len(updates)), weight.chunk(len(updates)), updates, strict=True):
            fake_quantize_(merge(old.to(part.dtype), update, factor, part), purpose.block_format)
        made.append(merged.to(weight.dtype))
    return made[0], made[1]


def _add_gradients(
    grads: list[Tensor], expert: LoRAExpert, sources: tuple[Tensor, ...], results: tuple[Tensor, ...], factor: float
) -> None:
    """Adds the gradients of A and B of gate, up and down: each matrix read a source (M, in) and has a gradient (M, out)."""
    for index, (update, source, result) in enumerate(zip(expert, sources, results, strict=True)):
        a, b = (matrix.to(source.dtype) for matrix in update)
        accumulate(grads[2 * index], (result @ b).T, source, factor)
        accumulate(grads[2 * index + 1], result.T, source @ a.T, factor)
