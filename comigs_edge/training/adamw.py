"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), by torch's fused kernel.

torch's own class and its checkpoint function import the compiler on first use: 80 MB and a second that a board does not have.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from comigs_edge.training.optimiser import Optimiser

BETAS = (0.9, 0.95)  # the paper's
EPS = 1e-8

_adamw = partial(adamw, fused=True, amsgrad=False, beta1=BETAS[0], eps=EPS, maximize=False)


class AdamW(Optimiser):
    """It remembers both moments of each tensor's gradient, and how many steps they are of."""

    REMEMBERS = ("step", "exp_avg", "exp_avg_sq")

    def __init__(self, tensors: list[Tensor], learning_rate: float, weight_decay: float) -> None:
        super().__init__(tensors, learning_rate, weight_decay)
        self.beta2 = BETAS[1]  # of the second moment

    @torch.no_grad()
    def step(self) -> None:
        """One step for every tensor that has a gradient."""
        groups: dict[float, list[Tensor]] = {}
        for tensor in self.tensors:
            if tensor.grad is not None:
                groups.setdefault(self.factors.get(tensor, 1.0), []).append(tensor)
        for factor, tensors in groups.items():
            states = self.states(tensors)
            gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
            steps, averages, squares = ([state[key] for state in states] for key in self.REMEMBERS)
            rate = self.learning_rate * factor
            _adamw(tensors, gradients, averages, squares, [], steps, lr=rate, beta2=self.beta2, weight_decay=self.weight_decay)

    def initial(self, tensor: Tensor) -> dict[str, Tensor]:
        """No step and no gradient."""
        step = torch.zeros((), device=tensor.device)
        return {"step": step, "exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.zeros_like(tensor)}
