"""`comigs-edge train`: experts learn from training text, the router from validation text."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from comigs_edge.commands.plan import LINES_HELP, summary
from comigs_edge.home import folder as homes

if TYPE_CHECKING:
    from rich.progress import Progress

    from comigs_edge.fleet.rounds import Rounds, Totals
    from comigs_edge.home.config import PauseConfig
    from comigs_edge.training.pauses import Pauses
    from comigs_edge.training.run import TrainingRun
    from comigs_edge.training.trainer import Event, Trainer


def train(
    steps: Annotated[Optional[int], typer.Option(min=1, help="Expert steps; default: config.toml's, 200.")] = None,
    minutes: Annotated[Optional[float], typer.Option(min=0.1, help="Train as many steps as fit in so many minutes.")] = None,
    resume: Annotated[
        Optional[bool],
        typer.Option("--resume/--fresh", help="Insist on going on, or start from the bare base. Default: go on with an "
                     "interrupted training, else train the newest adapters further."),
    ] = None,
    pause: Annotated[
        bool,
        typer.Option("--pause/--no-pause", help="Wait while the device is hot, low on battery, short of memory or busy with "
                     "other programs; config.toml, [pause], says when."),
    ] = True,
    sync: Annotated[
        bool, typer.Option("--sync/--no-sync", help="Exchange generalists with the fleet, if this device has joined one.")
    ] = True,
    profile: Annotated[Optional[str], typer.Option(help="Profile of the device, in place of config.toml's.")] = None,
    lines: Annotated[Optional[list[str]], typer.Option("--plan", metavar="NAME=VALUE", help=LINES_HELP)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON at the end; progress goes to standard error.")] = False,
) -> None:  # fmt: skip
    """Train your model. Ctrl-C stops after the current step and keeps everything."""
    from comigs_edge.commands.console import bar, notes, warn

    if steps is not None and minutes is not None:
        raise typer.BadParameter("give --steps or --minutes, not both")
    home = homes.locate()
    settings = home.settings()
    with home.locked("train"):
        with notes.status("loading torch"):
            from comigs_edge.fleet.rounds import open_rounds
            from comigs_edge.planning import plan as planning
            from comigs_edge.training.run import open_training

        with notes.status("measuring the processor"):
            resolved = planning.resolve(home, settings, profile, lines or (), resume=resume, measure=True)
        plan = resolved.plan
        notes.print(summary(plan, settings), soft_wrap=True)
        planning.check_disk(home, plan, resolved.base)
        with bar("reading your text") as progress:
            training = open_training(home, resolved, progress)
        pauses = _pauses(settings.pause, pause, not plan.keep)
        pauses.wait()  # nothing has begun: here Ctrl-C has nothing to save
        trainer = training.begin(steps or _steps_in(training, minutes), resume)
        for warning in training.warnings:
            warn(warning)
        if training.resumed:
            notes.print(f"going on at expert step {trainer.expert_steps} of {trainer.schedule.steps}")
        fleet = None
        if sync and settings.fleet.sync:
            say = partial(notes.print, markup=False, soft_wrap=True)
            with notes.status("asking the coordinator"):
                fleet = open_rounds(home, training, trainer, say, warn)
        started = pauses.working_time()
        seen = _run(training, trainer, settings.train.checkpoint_minutes, pauses, fleet)
        version = training.end()
        _report(trainer, seen, pauses.working_time() - started, pauses.seconds, version, fleet, json)


def _pauses(settings: PauseConfig, is_wanted: bool, lean: bool) -> Pauses:
    from comigs_edge.commands.console import notes
    from comigs_edge.training.pauses import Pauses
    from profiles import watch

    limits = watch.limits(settings.temperature, settings.battery, settings.memory_mb * 10**6, settings.load)
    # Not as markup: the texts name sections of config.toml in brackets.
    say = partial(notes.print, markup=False, soft_wrap=True)
    return Pauses(limits if is_wanted and settings.enabled else None, say, partial(_give_back_memory, lean))


def _give_back_memory(lean: bool) -> int:
    """Gives what is free to the system (466 MB of SmolLM2's 1.5 GB); returns the bytes, which the next step takes again."""
    import psutil

    from comigs_edge.training.memory import tune_allocator

    process = psutil.Process()
    before: int = process.memory_info().rss
    tune_allocator(lean)
    return max(0, before - process.memory_info().rss)


def _steps_in(training: TrainingRun, minutes: float | None) -> int | None:
    """Expert steps that fit in `minutes`, from the time of one step and one validation; None without a limit."""
    if minutes is None:
        return None
    from comigs_edge.commands.console import notes
    from comigs_edge.nn.adapters import Adapters
    from comigs_edge.nn.model import Model
    from comigs_edge.planning.plan import plan_experts
    from comigs_edge.training import run as session
    from comigs_edge.training.pace import Pace, steps_that_fit
    from comigs_edge.training.trainer import Trainer

    layout = plan_experts(training.settings.model, training.base.shape)
    plan = session.schedule(training.settings, training.plan.batch, None)
    with notes.status("measuring a step"):
        first = training.rows[0].batch(0, plan.batch).to(training.base.device)
        adapters = Adapters.initial(layout, training.base.shape, 0).to(training.base.device)
        model = Model(training.base, adapters, checkpointing=training.plan.checkpointing)
        below = _seconds(lambda: model.below(first.tokens, first.documents)) if training.plan.cache else 0.0
        trial = Trainer(model, *training.rows, replace(plan, steps=10**9, router_period=10**9))
        trial.step()  # the first one also makes the optimiser's state
        step = _seconds(trial.step)
        trial.schedule = replace(trial.schedule, quantise_start=0.0)
        quantised, validation = _seconds(trial.step) if plan.block_format else step, _seconds(trial.validate)
        pace = Pace(step, quantised, validation, below, len(training.rows[0]) / plan.batch)
    return steps_that_fit(minutes * 60, pace, plan, has_router=layout.num_specialists > 0)


def _seconds(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def _run(
    training: TrainingRun, trainer: Trainer, checkpoint_minutes: float, pauses: Pauses, fleet: Rounds | None
) -> int:
    """Runs to the end or to a signal, saving now and then, pausing where it must; returns the tokens computed."""
    tokens, saved = 0, pauses.working_time()

    def save(older_than: float) -> None:
        nonlocal saved
        if pauses.working_time() - saved >= older_than:
            training.save()
            saved = pauses.working_time()

    with _stop_on_signal() as stop, _display(trainer, pauses.working_time) as progress:

        def prepare() -> None:
            progress.update(progress.task_ids[0], phase="paused")
            save(older_than=60)

        for event in trainer.run():
            tokens += event.tokens
            _show(progress, trainer, event, tokens)
            if fleet is not None:
                fleet.after(event)
            if not stop and not trainer.is_done:
                save(checkpoint_minutes * 60)
                pauses.wait(stop, prepare)
                progress.update(progress.task_ids[0], phase=event.phase)
            if stop or trainer.is_done:
                break
        if fleet is not None:
            fleet.end()
    return tokens


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM comes; a second signal ends the process at once."""
    received: list[int] = []

    def receive(number: int, _: Any) -> None:
        received.append(number)
        os.write(2, b"\nstopping after this step; everything will be saved\n")
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _display(trainer: Trainer, clock: Callable[[], float]) -> Iterator[Progress]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from comigs_edge.commands.console import notes

    columns = (
        TextColumn("{task.fields[phase]:<6}"), BarColumn(bar_width=16), TextColumn("{task.fields[steps]}"),
        TextColumn("{task.fields[losses]}"), TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(),
    )  # fmt: skip
    done = trainer.expert_steps + trainer.router_steps
    # Nobody watches a log file: there the bar is drawn once, at the end.
    with Progress(*columns, console=notes, refresh_per_second=2, speed_estimate_period=600, get_time=clock) as progress:
        progress.add_task("", completed=done, total=trainer.total_steps, phase="start", steps="", losses="", speed="")
        yield progress


def _show(progress: Progress, trainer: Trainer, event: Event, tokens: int) -> None:
    import psutil

    from comigs_edge.commands.console import notes, size

    task = progress.tasks[0]
    validation = trainer.last_loss if trainer.last_loss == trainer.last_loss else trainer.first_loss
    progress.update(
        task.id, completed=event.expert_steps + event.router_steps, phase=event.phase,
        steps=f"{event.expert_steps}/{trainer.schedule.steps}",
        losses=f"loss {event.loss:.3f} validation {validation:.3f}",
        speed=f"{tokens / max(1e-9, task.elapsed or 0):.0f} tokens/s, {size(psutil.Process().memory_info().rss)}",
    )  # fmt: skip
    if event.validation_loss is not None and not notes.is_terminal:
        notes.print(
            f"expert step {event.expert_steps}/{trainer.schedule.steps}, router step {event.router_steps}: "
            f"loss {event.loss:.4f}, validation {event.validation_loss:.4f}"
        )


def _report(
    trainer: Trainer,
    tokens: int,
    seconds: float,
    paused: float,
    version: int | None,
    fleet: Rounds | None,
    as_json: bool,
) -> None:
    from comigs_edge.arrays import digest
    from comigs_edge.commands.console import next_command, out, print_json
    from comigs_edge.training.pauses import duration

    result = {
        "finished": trainer.is_done,
        "expert_steps": trainer.expert_steps,
        "router_steps": trainer.router_steps,
        "validation_loss_before": trainer.first_loss,
        "validation_loss": trainer.best_loss,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "paused_seconds": round(paused, 1),
        "adapters_version": version,
        "adapters_sha256": digest(trainer.adapters.arrays()),
        "best_sha256": digest(trainer.best),
        "fleet": None if fleet is None else asdict(fleet.totals),
        "next": "comigs-edge chat" if trainer.is_done else "comigs-edge train --resume",
    }
    if as_json:
        print_json(result)
        return
    state = (
        "trained"
        if trainer.is_done
        else f"stopped at expert step {trainer.expert_steps} of {trainer.schedule.steps}, everything is saved"
    )
    out.print(
        f"{state}: validation loss {trainer.first_loss:.4f} before, {trainer.best_loss:.4f} at its best "
        f"({tokens:,} tokens in {seconds / 60:.1f} minutes{f', paused for {duration(paused)}' if paused else ''})",
        soft_wrap=True,
    )
    if fleet is not None:
        out.print(_summary_of(fleet.totals), soft_wrap=True)
    if version is None:
        out.print("nothing better than the start was found, so the personal model is unchanged")
    next_command(str(result["next"]))


def _summary_of(totals: Totals) -> str:
    from comigs_edge.commands.console import size

    newest = "" if totals.newest is None else f", the newest is {totals.newest}"
    waits = "; an update waits, it is brought by: comigs-edge sync" if totals.waits else ""
    return (
        f"fleet: {totals.updates} updates brought ({size(totals.bytes_sent)}), {totals.generalists} generalists taken over "
        f"({size(totals.bytes_received)}){newest}{waits}"
    )
