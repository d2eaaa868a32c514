"""The pace of a training: what steps of it take, and how many steps fit into a given time. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from comigs_edge.training.schedule import FIT_ROWS, ON_THE_WAY, Schedule

FORWARD = 1 / 3  # of what a step takes, for the forward pass of as many rows


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of one step, of one that is fake quantised, and of one validation."""

    step: float
    quantised_step: float
    validation: float
    saved: float = 0.0  # by a step of a later epoch, because activations of the lower blocks are on disk
    epoch: float = math.inf  # steps


def of_steps(seconds: float, plan: Schedule) -> Pace:
    """That of a training of which no more is known than the seconds of a step."""
    validation = seconds * FORWARD * math.ceil(plan.validation_rows / plan.batch)
    return Pace(step=seconds, quantised_step=seconds, validation=validation)


def seconds_left(pace: Pace, plan: Schedule, has_router: bool, done: tuple[int, int] = (0, 0), closed: int = 0) -> float:
    """What a training by this schedule takes after `done` expert and router steps, and `closed` of the closing phase.

    A router step is counted as an expert step; there is one validation at the start and one after every period, some more at the
    end of a training that goes on, and one after the closing phase, which begins with forward passes of both texts.
    """
    steps = plan.steps

    def experts(number: int) -> float:
        plain = min(number, math.ceil(plan.quantise_start * steps)) if plan.block_format else number
        return plain * pace.step + (number - plain) * pace.quantised_step - pace.saved * max(0.0, number - pace.epoch)

    router_due = plan.router_due(steps) if has_router else 0
    router = max(0, router_due - done[1])
    closing: float = max(0, plan.closing - closed)
    if closing and not closed:
        closing += FORWARD * 2 * FIT_ROWS / plan.batch
    closing *= pace.quantised_step if plan.block_format else pace.step
    periods = math.ceil(steps / plan.router_period)
    is_over = done[0] >= steps and done[1] >= router_due  # the last period, which may be a short one, too
    seen = periods if is_over else done[0] // plan.router_period
    validations = (done == (0, 0)) + periods - seen + bool(closing) + (plan.goes_on and not is_over) * len(ON_THE_WAY)
    return experts(steps) - experts(done[0]) + router * experts(steps) / max(1, steps) + closing + pace.validation * validations


def steps_that_fit(seconds: float, pace: Pace, plan: Schedule, has_router: bool, done: tuple[int, int] = (0, 0)) -> int:
    """The most expert steps (those `done` at the least) whose training ends within `seconds`, by the same schedule."""

    def fits(steps: int) -> bool:
        return seconds_left(pace, replace(plan, steps=steps), has_router, done) <= seconds

    few = many = done[0]
    while fits(many + 1):
        few, many = many + 1, 2 * many + 1
    while few < many:
        middle = (few + many + 1) // 2
        few, many = (middle, many) if fits(middle) else (few, middle - 1)
    return few
