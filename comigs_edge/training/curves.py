"""The curves of a training: its losses over the expert steps, as many points as a picture needs; a checkpoint keeps them."""

from __future__ import annotations

import math
from typing import Any

KEY = "curves"  # in a checkpoint's progress
MOST = 256  # points of a curve, at most: then every two become one

Point = tuple[int, float]  # expert steps that were done, and a loss in nats a token


class Curves:
    """`training`: means of the steps up to each point; `validation`: what was measured, from before the first step on."""

    def __init__(self, facts: dict[str, Any] | None = None) -> None:
        """`facts` are those of an earlier part of the same training."""
        facts = facts or {}
        self.training: list[Point] = [(step, loss) for step, loss in facts.get("training", ())]
        self.validation: list[Point] = [(step, loss) for step, loss in facts.get("validation", ())]
        self._stride: int = facts.get("stride", 1)  # steps that a point of `training` stands for
        self._rest: list[float] = list(facts.get("rest", ()))  # losses since the last point

    def facts(self) -> dict[str, Any]:
        """What JSON can hold."""
        curves = {"training": list(self.training), "validation": list(self.validation)}
        return curves | {"stride": self._stride, "rest": list(self._rest)}

    def add_training(self, step: int, loss: float) -> None:
        """The loss of an expert step; `step` counts it in."""
        self._rest.append(loss)
        if len(self._rest) < self._stride:
            return
        self.training.append((step, math.fsum(self._rest) / len(self._rest)))
        self._rest = []
        if len(self.training) == MOST:
            pairs = zip(self.training[::2], self.training[1::2], strict=True)
            self.training = [(step, (one + other) / 2) for (_, one), (step, other) in pairs]
            self._stride *= 2

    def add_validation(self, step: int, loss: float) -> None:
        """A measured loss, after `step` expert steps."""
        if not math.isfinite(loss):
            return
        self.validation.append((step, loss))
        if len(self.validation) > MOST:
            self.validation = [*self.validation[:-1:2], self.validation[-1]]

    def forget_validation(self) -> None:
        """What was measured was another text."""
        self.validation = []
