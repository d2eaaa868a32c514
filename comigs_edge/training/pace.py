"""The pace of a training: how many steps fit into a given time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from comigs_edge.nn.adapters import Adapters
from comigs_edge.planning.plan import plan_experts
from comigs_edge.training.run import TrainingRun
from comigs_edge.training.schedule import Schedule, make_schedule
from comigs_edge.training.silence import ROWS


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of one step, of one that is fake quantised, and of one validation."""

    step: float
    quantised_step: float
    validation: float
    saved: float = 0.0  # by a step of a later epoch, because activations of the lower blocks are on disk
    epoch: float = math.inf  # steps


def steps_within(run: TrainingRun, minutes: float) -> int:
    """Expert steps of this run's training that fit into `minutes`, by the time of a few steps; trains nothing."""
    plan = make_schedule(run.settings, run.plan.batch, None)
    layout = plan_experts(run.settings.model, run.base.hparams)
    trial = run.make_trainer(Adapters.initial(layout, run.base.hparams, 0))
    first = run.rows[0].batch(0, plan.batch).to(run.base.device)
    saved = _seconds(lambda: trial.model.below(first.tokens, first.documents)) if run.plan.cache else 0.0
    trial.schedule = replace(plan, steps=10**9, router_period=10**9)  # expert steps alone, in the weights as they are
    trial.step()  # the first one also makes the optimiser's state
    step = _seconds(trial.step)
    trial.schedule = replace(trial.schedule, quantise_start=0.0)
    quantised, validation = _seconds(trial.step) if plan.block_format else step, _seconds(trial.validate)
    pace = Pace(step=step, quantised_step=quantised, validation=validation, saved=saved, epoch=len(run.rows[0]) / plan.batch)
    return steps_that_fit(minutes * 60, pace, plan, has_router=trial.router is not None)


def steps_that_fit(seconds: float, pace: Pace, plan: Schedule, has_router: bool) -> int:
    """The most expert steps (0: not even one) whose training takes no longer than `seconds`, by the same schedule.

    A router step is counted as an expert step; there is one validation at the start and one after every period, and one after
    the closing phase, which begins with forward passes of both texts, a third of a step each.
    """

    def cost(steps: int) -> float:
        of_steps = replace(plan, steps=steps)
        plain = min(steps, math.ceil(plan.quantise_start * steps)) if plan.block_format else steps
        total = plain * pace.step + (steps - plain) * pace.quantised_step
        total -= pace.saved * max(0.0, steps - pace.epoch)
        router = total * of_steps.router_due(steps) / steps if has_router else 0
        closing = of_steps.closing and of_steps.closing + 2 * ROWS / plan.batch / 3
        closing *= pace.quantised_step if plan.block_format else pace.step
        validations = 1 + math.ceil(steps / plan.router_period) + bool(closing)
        return total + router + closing + pace.validation * validations

    steps = 0
    while cost(steps + 1) <= seconds:
        steps += 1
    return steps


def _seconds(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start
