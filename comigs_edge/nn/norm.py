"""RMSNorm with a frozen weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and one number a token; torch's own keeps three tensors of the input's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (N, 1): 1 / sqrt(mean(x^2) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight, inverse = ctx.saved_tensors  # (N, D), (D,), (N, 1)
        grad = grad * weight  # of x's type, also where the gradient is less precise
        along = torch.linalg.vecdot(grad, x)[..., None].mul_(inverse * inverse).div_(-x.shape[-1])  # (N, 1)
        return grad.addcmul_(x, along).mul_(inverse), None, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:  # (N, D), (D,) -> (N, D)
    """x / sqrt(mean(x^2) + eps) * weight, the weight being frozen; of the type `dtype`, or else of x's."""
    out: Tensor = _RMSNorm.apply(x, weight, eps, dtype or x.dtype)  # type: ignore[no-untyped-call]
    return out
