"""How a training looks in a terminal: one line that moves, and in a log file one line for each validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import psutil
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from comigs_edge.commands.console import LOGS, has_lost_reader, notes, size, warn
from comigs_edge.home import holder
from comigs_edge.training.event import Event, Phase
from comigs_edge.training.run import TrainingRun

TELLS = 2.0  # seconds between two notes for `status`, at least
# Each with the width of a terminal from which on it is there: times are always.
COLUMNS = (
    (0, TextColumn("{task.fields[phase]:<7}")), (76, BarColumn(bar_width=10)), (0, TextColumn("{task.fields[steps]}")),
    (68, TextColumn("{task.fields[losses]}")), (104, TextColumn("{task.fields[speed]}")),
    (0, TimeElapsedColumn()), (0, TextColumn("ETA")), (0, TimeRemainingColumn()),
)  # fmt: skip


class TrainScreen(Progress):
    """A `training.loop.Screen`; `clock` counts seconds of work. Other processes find how far it is in the holder's file."""

    def __init__(self, run: TrainingRun, clock: Callable[[], float], holder_file: Path) -> None:
        super().__init__(
            console=notes, refresh_per_second=2, speed_estimate_period=600, get_time=clock, disable=not notes.is_interactive
        )
        self._run, self._trainer = run, run.trainer
        self._holder_file, self._told, self._logged = holder_file, 0.0, time.monotonic()
        self._loss: float | None = None
        self._speed = 0.0  # tokens a second
        done, total = run.steps_done, run.total_steps
        self._task = self.add_task("", completed=done, total=total, phase="start", steps="", losses="", speed="")

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """The line, with what the terminal has room for now."""
        self.columns = tuple(column for width, column in COLUMNS if notes.width >= width)
        return super().make_tasks_table(tasks)

    def show_step(self, event: Event, tokens: int) -> None:
        """Moves the line; where the output is no terminal, prints a line after a validation."""
        trainer, elapsed, validation = self._trainer, self.tasks[0].elapsed, self._validation
        self._loss, self._speed = event.loss, tokens / max(1e-9, elapsed or 0)
        steps = f"{event.expert_steps}/{trainer.schedule.steps}"
        self.update(
            self._task, completed=event.expert_steps + event.router_steps, total=self._run.total_steps, phase=event.phase,
            steps=steps,
            losses=f"loss {event.loss:.3f} validation {validation or math.nan:.3f}",
            speed=f"{self._speed:.0f} tokens/s, {size(psutil.Process().memory_info().rss)}",
        )  # fmt: skip
        if not notes.is_interactive and (event.validation_loss is not None or time.monotonic() - self._logged >= LOGS):
            self._logged = time.monotonic()
            phase = f"{event.phase} phase, " if event.phase in ("closing", "local") else ""
            measured = "" if event.validation_loss is None else f", validation {event.validation_loss:.4f}"
            notes.print(
                f"{phase}expert step {steps}, router step {event.router_steps}: loss {event.loss:.4f}{measured}", soft_wrap=True
            )

    def is_read(self) -> bool:
        """Whether nobody has closed a pipe that this is written to."""
        return not has_lost_reader()

    def show_problem(self, text: str) -> None:
        """A warning above the line."""
        warn(text)

    def show_phase(self, phase: Phase | Literal["paused"]) -> None:
        """Writes what the training does now."""
        self.update(self._task, phase=phase)
        if phase == "paused" or time.monotonic() - self._told >= TELLS:
            self._tell(phase)

    @property
    def _validation(self) -> float | None:
        trainer = self._trainer
        return trainer.first_loss if math.isnan(trainer.last_loss) else trainer.last_loss

    def _tell(self, phase: str) -> None:
        self._told = time.monotonic()
        progress = holder.Progress(
            phase=phase, expert_steps=self._trainer.expert_steps, steps=self._trainer.schedule.steps, loss=self._loss,
            validation_loss=self._validation, tokens_per_second=self._speed, seconds_left=self.tasks[0].time_remaining,
        )  # fmt: skip
        holder.tell(self._holder_file, progress)
