"""What a training tells after each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["expert", "router", "closing", "local"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One step that was done, or a validation behind the last one; losses in nats a token."""

    phase: Phase
    expert_steps: int
    router_steps: int
    loss: float
    tokens: int  # that the step computed
    validation_loss: (
        float | None
    )  # where it was measured after this step: of the best there, at the end of a training that goes on
    is_best: bool
    problem: str | None = None  # a sentence about what could not be done
