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
import torch.nn.functional as F
from torch import Tensor

from comigs_edge.buffers import add, chunks, scratch, scratch_like
from comigs_edge.lora import LoRA, LoRAExpert, merge
from comigs_edge.moe import Frozen, Routing
from comigs_edge.norm import inverse_rms, rms_norm_backward
from comigs_edge.swiglu import swiglu, swiglu_backward
from quantize.fake import fake_quantize_


def frozen_mlp(x: Tensor, mlp: Frozen) -> Tensor:  # (N, D) -> (N, D)
    """The frozen MLP's output for the residual stream `x`, before its norm."""
    out: Tensor = _MergedMLP.apply(x, None, None, mlp, 1.0, None)  # type: ignore[no-untyped-call]
    return out


def quantised_mixture(
    x: Tensor, mlp: Frozen, experts: list[LoRAExpert], routing: Routing | None, factor: float, format_name: str
) -> Tensor:  # (N, D) -> (N, D)
    """As `lora_mixture.mixture`, each expert in the weights that a file in this block format holds."""
    out = torch.zeros((), dtype=x.dtype, device=x.device)
    for index, expert in enumerate(experts):
        weights, rows = None, None
        if routing is not None:
            weights = routing.weights[:, index]
            if routing.weights is not routing.probabilities:
                rows = weights.detach().nonzero().squeeze(1)
        updates = [tensor for update in expert for tensor in update]
        out = out + _MergedMLP.apply(x, weights, rows, mlp, factor, format_name, *updates)  # type: ignore[no-untyped-call]
    return out


class _MergedMLP(torch.autograd.Function):
    """Forward and backward, `CHUNK` tokens at a time; merged weights and hidden layers are made again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor | None, rows: Tensor | None, mlp: Frozen, factor: float,
        format_name: str | None, *updates: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weights, rows, *updates)
        ctx.mlp, ctx.factor, ctx.format_name = mlp, factor, format_name
        gate_up, down = _merged(mlp, _expert(updates), factor, format_name)
        out = torch.zeros_like(x) if rows is not None else torch.empty_like(x)
        for part in chunks(len(x), rows):
            normed = x[part] * inverse_rms(x[part], mlp.eps) * mlp.norm
            gate, up = _gate_up(normed, gate_up)
            hidden = F.silu(gate, inplace=True).mul_(up)
            if weights is not None:
                hidden *= weights[part, None]
            out[part] = torch.mm(hidden, down.T, out=scratch("out", x[part], x.shape[1]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, rows, *updates = ctx.saved_tensors
        mlp, factor, expert = ctx.mlp, ctx.factor, _expert(updates)
        gate_up, down = _merged(mlp, expert, factor, ctx.format_name)
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        grad_weights = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        grads = [torch.zeros_like(update) for update in updates] if any(ctx.needs_input_grad[6:]) else []
        for part in chunks(len(x), rows):
            inverse = inverse_rms(x[part], mlp.eps)
            normed = x[part] * inverse * mlp.norm
            gate, up = _gate_up(normed, gate_up)
            hidden, slope = swiglu(gate, up)
            grad_hidden = torch.mm(grad[part], down, out=scratch("grad_hidden", gate, gate.shape[1]))
            if grad_weights is not None:
                grad_weights[part] = torch.linalg.vecdot(grad_hidden, hidden)
            if weights is not None:
                grad_hidden.mul_(weights[part, None])
                hidden.mul_(weights[part, None])
            swiglu_backward(gate, up, slope, grad_hidden)
            if expert is not None and grads:
                _add_gradients(grads, expert, (normed, normed, hidden), (gate, up, grad[part]), factor)
            if grad_x is not None:
                normed_grad = torch.mm(scratch("gate_up", x[part], len(gate_up)), gate_up)
                add(grad_x, part, rms_norm_backward(normed_grad, x[part], mlp.norm, inverse))
        none: list[Tensor | None] = [None] * len(updates)
        return grad_x, grad_weights, None, None, None, None, *(grads or none)


def _merged(mlp: Frozen, expert: LoRAExpert | None, factor: float, format_name: str | None) -> tuple[Tensor, Tensor]:
    """Gate and up (2F, D) and down (D, F) with the updates, in reused memory."""
    if expert is None or format_name is None:
        return mlp.gate_up, mlp.down
    gate_up, down = scratch_like("merged gate_up", mlp.gate_up), scratch_like("merged down", mlp.down)
    frozen, merged = (*mlp.gate_up.chunk(2), mlp.down), (*gate_up.chunk(2), down)
    for weight, update, out in zip(frozen, expert, merged, strict=True):
        fake_quantize_(merge(weight, update, factor, out), format_name)
    return gate_up, down


def _gate_up(normed: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:  # (M, D) -> (M, F) twice
    """Gate and up before the activation: the two halves of the buffer `gate_up`."""
    gate, up = torch.mm(normed, weights.T, out=scratch("gate_up", normed, len(weights))).chunk(2, dim=1)
    return gate, up


def _add_gradients(
    grads: list[Tensor], expert: LoRAExpert, sources: tuple[Tensor, ...], results: tuple[Tensor, ...], factor: float
) -> None:
    """Adds the gradients of A and B of gate, up and down: each matrix read a source (M, in) and has a gradient (M, out)."""
    for index, (update, source, result) in enumerate(zip(expert, sources, results, strict=True)):
        grads[2 * index].addmm_((result @ update.b).T, source, alpha=factor)
        grads[2 * index + 1].addmm_(result.T, source @ update.a.T, alpha=factor)


def _expert(updates: Any) -> LoRAExpert | None:
    """Six tensors: A and B of gate, up and down."""
    if not updates:
        return None
    return LoRAExpert(*(LoRA(a, b) for a, b in zip(updates[::2], updates[1::2], strict=True)))
