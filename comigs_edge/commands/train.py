"""`comigs-edge train`: experts learn from training text, the router from validation text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from comigs_edge.commands.console import bar, in_minutes, measuring, notes, unbroken_output, warn
from comigs_edge.commands.follow import place
from comigs_edge.commands.plan import Lines, Profile, Standing, summary
from comigs_edge.commands.settings import settings_of
from comigs_edge.home import folder as homes
from comigs_edge.progress import count_up

if TYPE_CHECKING:
    from comigs_edge.fleet.rounds import Rounds, Way
    from comigs_edge.home.config import Config
    from comigs_edge.home.folder import Home
    from comigs_edge.inference.elsewhere import Elsewhere
    from comigs_edge.training.pauses import Pauses
    from comigs_edge.training.run import TrainingRun
    from comigs_edge.training.time_limit import TimeLimit

WRITING = 0.7  # seconds in which a base writes as many tokens as a step has, by those of a step


def train(
    steps: Annotated[Optional[int], typer.Option(min=1, help="Expert steps; default: config.toml's, 200.")] = None,
    minutes: Annotated[
        Optional[float], typer.Option(min=0.1, help="Train as many steps as fit in this time and text takes; then local text.")
    ] = None,
    resume: Annotated[
        Optional[bool],
        typer.Option("--resume/--fresh", help="Continue an interrupted training, or start over from the base. Default: "
                     "continue one if there is one, else train the newest adapters further."),
    ] = None,
    pause: Annotated[
        bool,
        typer.Option("--pause/--no-pause", help="Wait while the device is hot, low on battery, short of memory or busy with "
                     "other programs; the section pause of config.toml says when."),
    ] = True,
    sync: Annotated[
        bool, typer.Option("--sync/--no-sync", help="Exchange generalists with the fleet, if this device has joined one.")
    ] = True,
    background: Annotated[
        bool, typer.Option("--background", help="Go on without this terminal: see status --follow, end it with train --stop.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the training that runs in this home; everything is saved.")] = False,
    profile: Profile = None,
    lines: Lines = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON at the end; progress goes to standard error.")] = False,
) -> None:  # fmt: skip
    """Train your model. Ctrl-C stops after the current step and keeps everything."""
    if steps is not None and minutes is not None:
        raise typer.BadParameter("give --steps or --minutes, not both")
    if stop or background:
        from comigs_edge.commands import background as elsewhere

        words = _words(steps, minutes, resume, pause=pause, sync=sync, profile=profile, lines=lines)
        elsewhere.stop(homes.locate(), json) if stop else elsewhere.start(homes.locate(), words, json)
        return
    with unbroken_output():
        perform(steps, minutes, resume, pause=pause, sync=sync, profile=profile, lines=lines, json=json)


@contextmanager
def _stopped_early() -> Iterator[None]:
    """Says what Ctrl-C means before the first step; from there on the training takes it."""
    try:
        yield
    except KeyboardInterrupt:
        notes.print("stopped by Ctrl-C while loading: no step was trained")
        raise typer.Exit(130) from None


def _words(
    steps: int | None, minutes: float | None, resume: bool | None, *,
    pause: bool, sync: bool, profile: str | None, lines: list[str] | None,
) -> list[str]:  # fmt: skip
    """These options as they are typed."""
    valued = {"--steps": steps, "--minutes": minutes, "--profile": profile}
    words = [word for name, value in valued.items() if value is not None for word in (name, str(value))]
    words += [word for line in lines or () for word in ("--plan", line)]
    words += [] if resume is None else ["--resume" if resume else "--fresh"]
    return words + ["--no-pause"] * (not pause) + ["--no-sync"] * (not sync)


def perform(
    steps: int | None, minutes: float | None, resume: bool | None, *,
    pause: bool, sync: bool, profile: str | None, lines: list[str] | None, json: bool, way: Way | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains with these options, tells what became of it and returns that, as `--json` has it; `way` leads to the fleet."""
    home = homes.locate()
    settings = settings_of(home)
    is_alone = not (sync and settings.fleet.sync)
    with ExitStack() as stack:
        with _stopped_early():
            stack.enter_context(home.lock("train"))
            run, pauses, fleet, limit = _begin(home, settings, steps, minutes, resume, pause, is_alone, profile, lines or (), way)
            from comigs_edge.commands.train_report import report
            from comigs_edge.commands.train_screen import TrainScreen
            from comigs_edge.training.loop import run_training
        with TrainScreen(run, pauses.working_time, home.holder_file) as screen:
            outcome = run_training(run, pauses, fleet, screen, limit)
        elsewhere = _measure_elsewhere(run, outcome.version) if run.is_done and outcome.version is not None else None
    return report(home, run, outcome, pauses.seconds, None if is_alone else fleet, elsewhere, json)


def _begin(
    home: Home, settings: Config, steps: int | None, minutes: float | None, resume: bool | None, pause: bool, is_alone: bool,
    profile: str | None, lines: Sequence[str], way: Way | None,
) -> tuple[TrainingRun, Pauses, Rounds | None, TimeLimit | None]:  # fmt: skip
    """Everything before the first step: the plan, the text, the trainer and what the fleet has; nothing is learned here."""
    begun = time.monotonic()
    with notes.status("loading torch"):
        from comigs_edge.fleet.private import connect
        from comigs_edge.fleet.rounds import open_rounds
        from comigs_edge.planning import plan as planning
        from comigs_edge.training.opening import open_training
        from comigs_edge.training.pauses import open_pauses
        from comigs_edge.training.time_limit import TimeLimit
        from comigs_edge.training.trial import measure_pace

    with measuring():
        resolved = planning.resolve(home, settings, profile, lines, resume=resume, measure=True)
    plan = resolved.plan
    planning.check_disk(home, settings, plan, resolved.base)
    with bar("reading your text") as progress:
        run = open_training(home, resolved, progress, resume)
    say = partial(notes.print, soft_wrap=True)
    pauses = open_pauses(settings.pause, pause, not plan.keep, say)
    pauses.wait()
    limit = None
    if minutes is not None:
        with notes.status("measuring a step"):
            limit = TimeLimit(run, measure_pace(run), begun + 60 * minutes, pauses.working_time)
    trainer = run.begin(steps, resume)
    if limit is not None and not limit.begin():
        least = "what is due behind the steps done" if trainer.expert_steps else "one step with the router's after it"
        say(f"not even {least} fits into {minutes:g} minutes: it is trained, and takes longer")
    schedule = trainer.schedule
    local = run.local_steps - (0 if run.local is None else run.local.steps)
    closed = 0 if run.closing is None else run.closing.steps
    done = Standing(trainer.expert_steps, trainer.router_steps, closed, goes_on=schedule.goes_on)
    most, minutes = schedule.patience > 0, None if limit is None or limit.is_enough else minutes
    notes.print(summary(plan, settings, schedule.steps, done, most=most, local=local, minutes=minutes), soft_wrap=True)
    if run.news and not run.resumed:
        notes.print(run.news, soft_wrap=True)
    for warning in run.warnings:
        warn(warning)
    before = pauses.working_time()
    _make_ordinary(run, pauses)
    if limit is not None:
        limit.until += pauses.working_time() - before  # it is written once, and not in the time of this training
    if run.resumed:
        notes.print(f"resuming {place(trainer.expert_steps, trainer.schedule.steps)}")
    with notes.status("asking the coordinator"):
        return run, pauses, open_rounds(home, run, trainer, say, warn, is_alone, way or connect), limit


def _make_ordinary(run: TrainingRun, pauses: Pauses) -> None:
    """Lets the base write its ordinary text, where it has not yet."""
    from comigs_edge.commands.train_screen import TELLS

    missing = sum(max(0, text.tokens - text.num_tokens) for text in run.ordinary)
    if not missing:
        return
    minutes = (run.plan.step_seconds or 0) * missing / (run.plan.batch * run.plan.context) * WRITING / 60
    about = f", in {in_minutes(minutes)}" if minutes else ""
    notes.print(
        f"the base writes {missing:,} tokens of its own answers{about}, once: from them your model learns when to let it speak "
        "alone (--plan zero_expert=false does without)",
        soft_wrap=True,
    )
    told = 0.0
    with bar("the base writes") as progress:

        def show(done: int, total: int) -> None:
            nonlocal told
            progress(done, total)
            if time.monotonic() - told >= TELLS:
                told = time.monotonic()
                _tell(run, f"the base writes, {done:,} of {total:,} tokens")
            pauses.wait(prepare=lambda: _tell(run, "paused"))

        run.make_ordinary(show)


def _tell(run: TrainingRun, phase: str) -> None:
    """What `status` says of a training that has no step yet."""
    from comigs_edge.home import holder

    trainer = run.trainer
    progress = holder.Progress(phase=phase, expert_steps=trainer.expert_steps, steps=trainer.schedule.steps)
    holder.tell(run.home.holder_file, progress)


def _measure_elsewhere(run: TrainingRun, version: int) -> Elsewhere | None:
    """What the newest adapters have lost on the base's own answers; None without those, or after Ctrl-C: all is saved."""
    from comigs_edge.export.folder import newest_adapters
    from comigs_edge.home.versions import note_measured
    from comigs_edge.inference.elsewhere import measure_elsewhere
    from comigs_edge.nn.model import Model

    if not run.ordinary:
        return None
    adapters, _ = newest_adapters(run.home, run.settings)
    model = Model(run.base, adapters.to(run.base.device))
    model.block_format = run.settings.storage().fake_format
    text = run.ordinary[1]
    with suppress(KeyboardInterrupt), bar("measuring what is lost elsewhere") as progress:
        measured = measure_elsewhere(model, text.answers, count_up(progress, text.num_tokens))
        note_measured(run.home.adapters, version, {"elsewhere": measured._asdict()})
        return measured
    return None
