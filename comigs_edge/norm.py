"""RMSNorm with a frozen weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def inverse_rms(x: Tensor, eps: float) -> Tensor:  # (N, D) -> (N, 1)
    """1 / sqrt(mean(x^2) + eps)."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """The gradient (N, D) of x, from that of x * inverse * weight."""
    grad = grad * weight
    along = (grad * x).mean(-1, keepdim=True).mul_(inverse * inverse)  # (N, 1)
    return grad.sub_(x * along).mul_(inverse)


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and one number a token; torch's own keeps three tensors of the input's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors  # (N, D), (D,), (N, 1)
        return rms_norm_backward(grad, x, weight, inverse), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:  # (N, D), (D,) -> (N, D)
    """x / sqrt(mean(x^2) + eps) * weight, the weight being frozen."""
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out
