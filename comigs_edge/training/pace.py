"""The pace of a training: how many steps fit into a given time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from comigs_edge.nn.adapters import Adapters
from comigs_edge.planning.plan import plan_experts
from comigs_edge.training.captured import WARM_UP
from comigs_edge.training.run import TrainingRun
from comigs_edge.training.schedule import Schedule, make_schedule
from comigs_edge.training.silence import ROWS
from comigs_edge.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of one step, of one that is fake quantised, and of one validation."""

    step: float
    quantised_step: float
    validation: float
    saved: float = 0.0  # by a step of a later epoch, because activations of the lower blocks are on disk
    epoch: float = math.inf  # steps


def measure_pace(run: TrainingRun) -> Pace:
    """The pace of this run's training, by the time of a few steps; trains nothing."""
    plan = make_schedule(run.settings, run.plan.batch, None)
    layout = plan_experts(run.settings.model, run.base.hparams)
    trial = run.make_trainer(Adapters.initial(layout, run.base.hparams, 0))
    first = run.rows[0].batch(0, plan.batch).to(run.base.device)
    saved = _seconds(lambda: trial.model.below(first.tokens, first.documents)) if run.plan.cache else 0.0
    trial.schedule = replace(plan, steps=10**9, router_period=10**9)  # expert steps alone, in the weights as they are
    trial.step()  # the first one also makes the optimiser's state
    step = _step_seconds(trial)
    trial.schedule = replace(trial.schedule, quantise_start=0.0)
    quantised, validation = _step_seconds(trial) if plan.block_format else step, _seconds(trial.validate)
    return Pace(step=step, quantised_step=quantised, validation=validation, saved=saved, epoch=len(run.rows[0]) / plan.batch)


def seconds_left(pace: Pace, plan: Schedule, has_router: bool, done: tuple[int, int] = (0, 0)) -> float:
    """What a training by this schedule takes after `done` expert and router steps.

    A router step is counted as an expert step; there is one validation at the start and one after every period, and one after
    the closing phase, which begins with forward passes of both texts, a third of a step each.
    """
    steps = plan.steps

    def experts(number: int) -> float:
        plain = min(number, math.ceil(plan.quantise_start * steps)) if plan.block_format else number
        return plain * pace.step + (number - plain) * pace.quantised_step - pace.saved * max(0.0, number - pace.epoch)

    router = max(0, plan.router_due(steps) - done[1]) if has_router else 0
    closing = plan.closing and plan.closing + 2 * ROWS / plan.batch / 3
    closing *= pace.quantised_step if plan.block_format else pace.step
    validations = math.ceil(steps / plan.router_period) + bool(closing)
    validations += 1 if done == (0, 0) else -(done[0] // plan.router_period)
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


def _step_seconds(trial: Trainer) -> float:
    for _ in range(0 if trial.captured is None else WARM_UP + 1):
        trial.step()
    return _seconds(trial.step)


def _seconds(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start
