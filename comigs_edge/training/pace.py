"""How many steps fit into a given time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from comigs_edge.training.schedule import Schedule


@dataclass(frozen=True)
class Pace:
    """Seconds of one step, of one that is fake quantised, and of one validation."""

    step: float
    quantised_step: float
    validation: float
    saved: float = 0.0  # by a step of a later epoch, because outputs of lower blocks are on disk
    epoch: float = math.inf  # steps


def steps_that_fit(seconds: float, pace: Pace, plan: Schedule, has_router: bool) -> int:
    """The most expert steps (at least one) whose training takes no longer than `seconds`, by the same schedule.

    A router step is counted as an expert step; there is one validation at the start and one after every period.
    """

    def cost(steps: int) -> float:
        of_steps = replace(plan, steps=steps)
        plain = min(steps, math.ceil(plan.quantise_start * steps)) if plan.block_format else steps
        total = plain * pace.step + (steps - plain) * pace.quantised_step
        total -= pace.saved * max(0.0, steps - pace.epoch)
        router = total * of_steps.router_due(steps) / steps if has_router else 0
        return total + router + pace.validation * (1 + math.ceil(steps / plan.router_period))

    steps = 1
    while cost(steps + 1) <= seconds:
        steps += 1
    return steps
