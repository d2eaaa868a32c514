"""A few steps that teach nothing, for the time that they take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from comigs_edge.nn.adapters import Adapters
from comigs_edge.planning.plan import plan_experts
from comigs_edge.training.captured import WARM_UP
from comigs_edge.training.pace import Pace
from comigs_edge.training.run import TrainingRun
from comigs_edge.training.schedule import make_schedule
from comigs_edge.training.trainer import Trainer


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


def _step_seconds(trial: Trainer) -> float:
    for _ in range(0 if trial.captured is None else WARM_UP + 1):
        trial.step()
    return _seconds(trial.step)


def _seconds(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start
