"""Muon (Jordan et al. 2024) for the experts' matrices: the momentum, with all its singular values made about 1.

AdamW gives every number of a matrix a step of about the same size; here every direction of the matrix gets one, so the rare
directions are learned as fast as the common ones. The size is such that the learning rate that is best for AdamW is so here too
(docs/results.md; twice that of Liu et al. 2025, arXiv:2502.16982). It remembers one number a weight in place of two.

Shapes: M matrices of one shape, m the shorter of their sides, n the longer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from comigs_edge.training.optimiser import Optimiser

MOMENTUM = 0.95
SIZE = 0.4  # root mean square of a step, in learning rates
# Of the odd polynomial that is applied five times; after them singular values from 0.002 up lie between 0.7 and 1.2.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5
TINY = 1e-12


class Muon(Optimiser):
    """With Nesterov's momentum, and weight decay as AdamW has it; all tensors are matrices."""

    REMEMBERS = ("momentum",)

    @torch.no_grad()
    def step(self) -> None:
        """One step for every tensor that has a gradient."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for tensor in self.tensors:
            if tensor.grad is not None:
                by_shape.setdefault(tensor.shape, []).append(tensor)
        for shape, tensors in by_shape.items():
            directions, size = orthogonalise(torch.stack(self._look_ahead(tensors))), SIZE * max(shape) ** 0.5
            rates = [self.learning_rate * self.factors.get(tensor, 1.0) for tensor in tensors]
            torch._foreach_mul_(tensors, [1 - rate * self.weight_decay for rate in rates])
            for tensor, direction, rate in zip(tensors, directions, rates, strict=True):
                tensor.sub_(direction, alpha=rate * size)

    def initial(self, tensor: Tensor) -> dict[str, Tensor]:
        """No momentum."""
        return {"momentum": torch.zeros_like(tensor)}

    def _look_ahead(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """All at once: on a GPU that is one kernel in place of one a tensor."""
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        momenta = [state["momentum"] for state in self.states(tensors)]
        torch._foreach_mul_(momenta, MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        return torch._foreach_add(gradients, momenta, alpha=MOMENTUM)


def orthogonalise(matrices: Tensor) -> Tensor:  # (M, m, n) or (M, n, m) -> the same
    """U V^T in place of U S V^T, about, for each matrix; where S is 0 or tiny, so is what comes out.

    Newton and Schulz's iteration X <- (a + b X X^T + c (X X^T)^2) X is done on X X^T, which is small: its factors are
    polynomials of that, so they commute, and X is multiplied once, by their product.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT).mT
    norms: Tensor = torch.linalg.matrix_norm(matrices, keepdim=True) + TINY
    gram = torch.bmm(matrices, matrices.mT) / norms.square()
    identity = torch.eye(gram.shape[-1], device=gram.device)
    product = identity.expand_as(gram)
    for _ in range(ROUNDS):
        factor = torch.baddbmm(gram, gram, gram, beta=B, alpha=C) + A * identity
        product, gram = torch.bmm(factor, product), torch.bmm(torch.bmm(factor, gram), factor)
    return torch.bmm(product, matrices).div_(norms)
