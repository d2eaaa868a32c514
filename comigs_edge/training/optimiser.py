"""What every optimiser of the trainer has."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Optimiser(ABC):
    """Changes `tensors` in place by their gradients; `state` holds what it remembers of each, by the names in `REMEMBERS`."""

    REMEMBERS: tuple[str, ...]

    def __init__(self, tensors: list[Tensor], learning_rate: float, weight_decay: float) -> None:
        self.tensors, self.learning_rate, self.weight_decay = tensors, learning_rate, weight_decay
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.factors: dict[Tensor, float] = {}  # on the learning rate, of tensors whose factor is not 1

    def states(self, tensors: list[Tensor]) -> list[dict[str, Tensor]]:
        """What it remembers of each of these."""
        for tensor in tensors:
            if tensor not in self.state:
                self.state[tensor] = self.initial(tensor)
        return [self.state[tensor] for tensor in tensors]

    @abstractmethod
    def initial(self, tensor: Tensor) -> dict[str, Tensor]:
        """What it remembers of a tensor before its first step."""

    @abstractmethod
    def step(self) -> None:
        """One step for every tensor that has a gradient."""
