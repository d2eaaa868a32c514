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

from comigs_edge.nn.lora import LoRA, LoRAExpert, merge
from comigs_edge.nn.mlp import Frozen, Pass, swiglu, swiglu_backward
from comigs_edge.nn.routing import Routing
from comigs_edge.nn.tensors import accumulate, add, at, buffer, chunks, scratch
from quantize.fake import fake_quantize_


def frozen_mlp(x: Tensor, mlp: Frozen, purpose: Pass = Pass()) -> Tensor:  # (N, D) -> (N, D)
    """The frozen MLP's output for the normed input `x`."""
    out: Tensor = _MergedMLP.apply(x, None, None, mlp, 1.0, None, purpose)  # type: ignore[no-untyped-call]
    return out


def quantised_mixture(
    x: Tensor, mlp: Frozen, experts: list[LoRAExpert], routing: Routing | None, factor: float, format_name: str,
    purpose: Pass = Pass(),
) -> Tensor:  # fmt: skip
    """As `lora_mixture.mixture`, each expert in the weights that a file in this block format holds; (N, D) -> (N, D)."""
    out = torch.zeros((), dtype=x.dtype, device=x.device)
    for index, expert in enumerate(experts):
        weights, rows = None, None
        if routing is not None:
            weights = routing.weights[:, index].to(x.dtype)
            if routing.weights is not routing.probabilities and not x.is_cuda:  # see `lora_mixture.mixture`
                rows = weights.detach().nonzero().squeeze(1)
        updates = [tensor for update in expert for tensor in update]
        each = purpose._replace(kept=None)  # merging costs more than the products that could be kept
        out = out + _MergedMLP.apply(x, weights, rows, mlp, factor, format_name, each, *updates)  # type: ignore[no-untyped-call]
    return out


class _MergedMLP(torch.autograd.Function):
    """Forward and backward, `CHUNK` tokens at a time; merged weights and hidden layers are made again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor | None, rows: Tensor | None, mlp: Frozen, factor: float,
        format_name: str | None, purpose: Pass, *updates: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weights, rows, *updates)
        ctx.mlp, ctx.factor, ctx.format_name = mlp, factor, format_name
        out = torch.zeros_like(x) if rows is not None else torch.empty_like(x)
        ctx.kept = None if purpose.kept is None else buffer(purpose.kept, (len(x), len(mlp.gate_up)), x)
        if purpose.graph_only:
            return out
        gate_up, down = _merged(mlp, _expert(updates), factor, format_name)
        for part in chunks(len(x), rows):
            gate, up = torch.mm(x[part], gate_up.T, out=_hidden_layers(ctx.kept, x, part, len(gate_up))).chunk(2, dim=1)
            hidden = swiglu(gate, up)
            if weights is not None:
                hidden *= weights[part, None]
            if rows is None:
                torch.mm(hidden, down.T, out=out[part])
            else:
                out[part] = torch.mm(hidden, down.T, out=scratch("out", hidden, x.shape[1]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, rows, *updates = ctx.saved_tensors
        mlp, factor, expert = ctx.mlp, ctx.factor, _expert(updates)
        gate_up, down = _merged(mlp, expert, factor, ctx.format_name)
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        grad_weights = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        grads = [torch.zeros_like(update) for update in updates] if any(ctx.needs_input_grad[7:]) else []
        for part in chunks(len(x), rows):
            both = _hidden_layers(ctx.kept, x, part, len(gate_up))
            gate, up = (both if ctx.kept is not None else torch.mm(x[part], gate_up.T, out=both)).chunk(2, dim=1)
            grad_hidden = torch.mm(grad[part], down, out=scratch("grad_hidden", gate, gate.shape[1]))
            weight = None if weights is None else weights[part, None]
            hidden = swiglu(gate, up) if grads or grad_weights is not None else None
            if grad_weights is not None and hidden is not None:
                grad_weights[part] = torch.linalg.vecdot(grad_hidden, hidden)
            if weight is not None:
                grad_hidden.mul_(weight)
            grad_both = swiglu_backward(gate, up, grad_hidden)
            if expert is not None and grads and hidden is not None:
                sources = (x[part], x[part], hidden if weight is None else hidden.mul_(weight))
                _add_gradients(grads, expert, sources, (*grad_both.chunk(2, dim=1), grad[part]), factor)
            if grad_x is not None and rows is None:
                torch.mm(grad_both, gate_up, out=grad_x[part])
            elif grad_x is not None:
                add(grad_x, part, grad_both @ gate_up)
        none: list[Tensor | None] = [None] * len(updates)
        return grad_x, grad_weights, None, None, None, None, None, *(grads or none)


def _hidden_layers(kept: Tensor | None, x: Tensor, part: Tensor | slice, width: int) -> Tensor:
    """Where gate and up of a chunk of tokens are: kept, or in reused memory."""
    found = at(kept, part)
    return scratch("gate_up", x[part], width) if found is None else found


def _merged(mlp: Frozen, expert: LoRAExpert | None, factor: float, format_name: str | None) -> tuple[Tensor, Tensor]:
    """Gate and up (2F, D) and down (D, F) with the updates, in reused memory."""
    if expert is None or format_name is None:
        return mlp.gate_up, mlp.down
    made = []
    for name, weight, updates in (("gate_up", mlp.gate_up, expert[:2]), ("down", mlp.down, expert[2:])):
        # Rounded in float32, whatever the products are computed in.
        merged = buffer(f"merged {name}", tuple(weight.shape), updates[0].a)
        for part, old, update in zip(merged.chunk(len(updates)), weight.chunk(len(updates)), updates, strict=True):
            fake_quantize_(merge(old.to(part.dtype), update, factor, part), format_name)
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


def _expert(updates: Any) -> LoRAExpert | None:
    """Six tensors: A and B of gate, up and down."""
    if not updates:
        return None
    return LoRAExpert(*(LoRA(a, b) for a, b in zip(updates[::2], updates[1::2], strict=True)))
