"""`status --follow`: a training that another process runs, as it goes."""

from __future__ import annotations

import time

from comigs_edge.commands.console import notes
from comigs_edge.home import holder
from comigs_edge.home.folder import Home

LOOKS = 0.5  # seconds between two looks at the other process


def place(expert_steps: int, steps: int) -> str:
    """Where a training was stopped."""
    if expert_steps < steps:
        return f"at expert step {expert_steps} of {steps}"
    if steps == 0:
        return "with steps of local text left"
    return f"after the last of {steps} expert steps, with closing or local steps left"


def line(progress: holder.Progress) -> str:
    """How far a training is, in one line."""
    from comigs_edge.training.pauses import duration

    losses = [
        f"{name} {value:.3f}"
        for name, value in (("loss", progress.loss), ("validation", progress.validation_loss))
        if value is not None
    ]
    left = "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
    speed = f", {progress.tokens_per_second:.0f} tokens/s" if progress.tokens_per_second else ""
    facts = f", {' '.join(losses)}" if losses else ""
    closes = progress.phase in ("closing", "local")
    step = f"after {progress.steps} expert steps" if closes else f"step {progress.expert_steps} of {progress.steps}"
    return f"{progress.phase}, {step}{left}{facts}{speed}"


def how_far(training: holder.Holder) -> str:
    """How far a training is that runs, in one line."""
    return "begins" if training.progress is None else line(training.progress)


def follow_training(home: Home) -> None:
    """Shows the training that runs in this home until it ends or Ctrl-C; it learns nothing of its spectator."""
    said = process = None
    try:
        with notes.status("looking") as screen:
            while (running := holder.training(home.holder_file)) is not None:
                process, now = running.process, how_far(running)
                screen.update(now)
                validation = running.progress and running.progress.validation_loss
                if not notes.is_interactive and validation != said:  # a log: one line for each validation
                    notes.print(now, soft_wrap=True)
                    said = validation
                time.sleep(LOOKS)
    except KeyboardInterrupt:
        notes.print("the training goes on")
        return
    if process is not None:
        notes.print(f"process {process} has ended")
