"""A training that ends about when its time is up: its schedule gets as many steps as the time that is left holds.

The first steps are a poor guess of the others: a processor grows warm, other programs come and go. So the number of steps follows
the clock, and with it the place on the course of the rates. The closing phase is counted in, local text is not: it must not shape
what is shared. Steps that become slower late end it too late: what is due behind them is done in any case. Text is read no more
often than the settings say, though there be time: a model gets worse by it.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from comigs_edge.training.event import Event
from comigs_edge.training.known import enough
from comigs_edge.training.pace import Pace, seconds_left, steps_that_fit
from comigs_edge.training.run import TrainingRun
from comigs_edge.training.schedule import Schedule

LAST = 12  # steps whose pace counts


class TimeLimit:
    """Of a training that has begun; `until` is on `clock`, which counts seconds of work, and `pace` is a first guess."""

    def __init__(self, run: TrainingRun, pace: Pace, until: float, clock: Callable[[], float]) -> None:
        self.run, self.pace, self.until, self.clock = run, pace, until, clock
        self._factors: deque[float] = deque([1.0], LAST)  # of each of the last steps, on the time that `pace` gives it

    def begin(self) -> bool:
        """Before the first step: whether the least that can be done fits into the time.

        That is one step and what follows it; in a training that goes on it is what is due behind the steps done.
        """
        trainer = self.run.trainer
        trainer.schedule = replace(trainer.schedule, patience=0)  # time alone ends it
        self._fit()
        self.run.limit_ordinary(trainer.schedule)
        done = trainer.expert_steps, trainer.router_steps
        if trainer.schedule.steps > self._least(done[0]):
            return True  # they were made to fit
        return seconds_left(self.pace, self._plan(), trainer.router is not None, done) <= self.until - self.clock()

    @property
    def is_enough(self) -> bool:
        """Whether reading the text so often as the settings say takes less than the time."""
        return self.run.trainer.schedule.steps >= enough(self.run)

    def after(self, event: Event, seconds: float) -> None:
        """After a step that took so many seconds."""
        if event.phase in ("expert", "router"):
            if event.validation_loss is None:
                self._factors.append(seconds / self._expected(event))
            self._fit()

    def _expected(self, event: Event) -> float:
        is_plain = self.run.trainer.schedule.fake_format(max(0, event.expert_steps - 1)) is None
        return max(1e-9, self.pace.step if is_plain else self.pace.quantised_step)

    def _plan(self) -> Schedule:
        """The schedule, with a closing phase if there is text for one."""
        schedule = self.run.trainer.schedule
        return schedule if self.run.ordinary else replace(schedule, closing_steps=0)

    def _fit(self) -> None:
        """Sets the schedule's steps to as many as fit."""
        trainer = self.run.trainer
        done = trainer.expert_steps, trainer.router_steps
        most = enough(self.run)
        if 0 < trainer.schedule.steps <= done[0] or most == 0:
            return  # the experts have ended, and what comes behind them is due
        factor = statistics.median_low(self._factors)  # one long step is no pace
        left = (self.until - self.clock()) / factor
        steps = steps_that_fit(left, self.pace, self._plan(), trainer.router is not None, done)
        trainer.schedule = replace(trainer.schedule, steps=max(self._least(done[0]), min(steps, most)))

    def _least(self, done: int) -> int:
        # Behind the last step is a validation. It is too late for one behind a step that was done, unless router steps follow.
        return done if done and self.run.trainer.router is not None else done + 1
