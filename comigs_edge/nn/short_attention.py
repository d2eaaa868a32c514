"""Attention of short rows by batched products and a softmax, in float32.

torch's own kernel divides the work for long rows: at rows of 128 tokens it takes three times as long (docs/decisions.md). Heads
that share keys and values are rows of one product, so nothing is repeated.

Shapes: B batch, T time, H heads, KV heads of keys and values, G = H / KV.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comigs_edge.nn.tensors import Buffers


def attend(qk: Tensor, v: Tensor, heads: int, mask: Tensor, buffers: Buffers) -> Tensor:
    """(B, T, H + KV, head) queries and keys, (B, T, KV, head) values -> (B, T, H, head), all float32.

    `mask` is zero or minus infinity, (T, T), or (B, 1, T, T).
    """
    out: Tensor = _Attention.apply(qk, v, heads, mask, buffers)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """Keeps queries, keys, values and the attention's weights (B KV, G T, T)."""

    @staticmethod
    def forward(ctx: Any, qk: Tensor, v: Tensor, heads: int, mask: Tensor, buffers: Buffers) -> Tensor:
        (batch, time, all_heads, width), kv = qk.shape, v.shape[2]
        queries, keys = torch.split(qk.transpose(1, 2), [heads, all_heads - heads], 1)
        q = (queries * width**-0.5).reshape(batch * kv, -1, width)  # (B KV, G T, head)
        k = keys.reshape(batch * kv, time, width)
        values = v.transpose(1, 2).reshape(batch * kv, time, width)
        scores = torch.bmm(q, k.transpose(1, 2), out=buffers.take("scores", (batch * kv, q.shape[1], time), q))
        scores.view(batch, heads, time, time).add_(mask)
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(q, k, values, weights)
        ctx.buffers = buffers
        return torch.bmm(weights, values).view(batch, heads, time, width).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        q, k, values, weights = ctx.saved_tensors
        batch, time, heads, width = grad.shape
        kv = len(k) // batch
        grad = grad.transpose(1, 2).reshape(q.shape)
        grad_v = torch.bmm(weights.transpose(1, 2), grad)
        grad_scores = torch.bmm(grad, values.transpose(1, 2), out=ctx.buffers.take("scores", tuple(weights.shape), q))
        # weights * (grad - sum(weights * grad)), row by row
        grad_scores = torch.ops.aten._softmax_backward_data(grad_scores, weights, -1, weights.dtype)
        grad_qk = q.new_empty(batch, time, heads + kv, width)
        grad_q, grad_k = torch.split(grad_qk.transpose(1, 2), [heads, kv], 1)
        torch.mul(torch.bmm(grad_scores, k).view(grad_q.shape), width**-0.5, out=grad_q)
        grad_k.copy_(torch.bmm(grad_scores.transpose(1, 2), q).view(grad_k.shape))
        return grad_qk, grad_v.view(batch, kv, time, width).transpose(1, 2), None, None, None
