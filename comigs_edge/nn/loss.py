"""Cross-entropy of the next token without logits of the whole vocabulary (N tokens, D width, V vocabulary)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comigs_edge.nn.tensors import accumulate, to_device
from comigs_edge.nn.weights import Base
from profiles.cost import LOGITS


class _NextTokenLoss(torch.autograd.Function):
    """Summed cross-entropy, some rows of the vocabulary at a time.

    The output matrix is frozen, so the gradient of the hidden state is made with the loss, in one pass: sums so far shrink
    when a larger logit comes (online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, base: Base, targets: Tensor, weights: Tensor | None) -> Tensor:
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        rows = hidden.to(base.dtype)
        top = hidden.new_full((len(hidden), 1), float("-inf"))
        total = hidden.new_zeros(len(hidden), 1)
        size = max(256, LOGITS // max(1, len(hidden)))
        memory = hidden.new_empty(len(hidden) * size)  # not reused: it would lie idle through the backward pass
        for weight in base.output_chunks(size):
            logits = memory[: len(rows) * len(weight)].view(len(rows), -1)
            if logits.dtype == rows.dtype:
                torch.mm(rows, weight.T, out=logits)
            else:
                logits.copy_(rows @ weight.T)
            larger = torch.maximum(top, logits.amax(-1, keepdim=True))
            logits.sub_(larger).exp_()
            shrink = top.sub_(larger).exp_()
            total.mul_(shrink).add_(logits.sum(-1, keepdim=True))
            if gradient is not None:
                accumulate(gradient.mul_(shrink), logits.to(weight.dtype), weight)
            top = larger
        wanted = base.output_rows(targets)  # (N, D)
        losses = (total.log() + top).squeeze(1).sub_(torch.linalg.vecdot(hidden, wanted))
        if weights is not None:
            losses.mul_(weights)
        if gradient is not None:  # softmax times the output matrix, minus the target's row
            gradient.div_(total).sub_(wanted)
            ctx.save_for_backward(gradient if weights is None else gradient.mul_(weights[:, None]))
        return losses.sum(dtype=torch.float64).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None


def next_token_loss(base: Base, hidden: Tensor, targets: Tensor, scored: Tensor, weights: Tensor | None = None) -> Tensor:
    """Summed cross-entropy in nats of the `targets` (N,) where `scored` (N,) is true; hidden is (N, D).

    Each loss counts `weights` (N,) times. `scored` may be on the processor where the rest is not: then nothing waits for the GPU.
    On a GPU nobody looks at it: all N losses are computed, and those of the others count 0 times.
    """
    if scored.is_cuda:
        weights = scored if weights is None else weights * scored
    elif not bool(scored.all()):
        rows = to_device(scored.nonzero().squeeze(1), hidden.device)
        hidden, targets = hidden[rows], targets[rows]
        weights = None if weights is None else weights[rows]
    loss: Tensor = _NextTokenLoss.apply(hidden, base, targets, weights)  # type: ignore[no-untyped-call]
    return loss
