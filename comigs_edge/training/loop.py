"""The life of a training: step after step until it is done or a signal comes, with exchanges, checkpoints and pauses."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal, NamedTuple, Protocol

from comigs_edge.errors import EXPECTED, ComigsError, sentence
from comigs_edge.home.folder import corpus
from comigs_edge.planning import experience
from comigs_edge.training.event import Event, Phase
from comigs_edge.training.pauses import Pauses
from comigs_edge.training.run import TrainingRun

PAUSE_SAVES = 60.0  # seconds of work that are saved when a pause begins: the power may go


class Fleet(Protocol):
    """The exchange with other devices. It keeps its errors to itself: the training continues without it."""

    def after(self, event: Event) -> object:
        """After a step."""

    def end(self) -> object:
        """After the last step."""


class Screen(Protocol):
    """What shows a training to a person."""

    def show_step(self, event: Event, tokens: int) -> None:
        """After a step; `tokens` were computed since the start."""

    def show_phase(self, phase: Phase | Literal["paused"]) -> None:
        """When a pause begins or ends."""

    def is_read(self) -> bool:
        """Whether there is still somebody to show it to; a training that is watched ends with its watcher."""

    def show_problem(self, text: str) -> None:
        """A sentence about what could not be done, while the training goes on."""


class Limit(Protocol):
    """What ends a training early or late."""

    def after(self, event: Event, seconds: float) -> None:
        """After a step that took so many seconds."""


class Outcome(NamedTuple):
    """What a run of the loop has done."""

    tokens: int  # that were computed
    seconds: float  # of work, without pauses
    version: int | None  # of the adapters; None if they are no better than at the start


def run_training(run: TrainingRun, pauses: Pauses, fleet: Fleet | None, screen: Screen, limit: Limit | None = None) -> Outcome:
    """Runs a training that has begun to its end, to Ctrl-C, SIGTERM or the end of its terminal or pipe, and saves it.

    What the disk refuses meanwhile is said once and tried again; raises `ComigsError` if at the end nothing could be saved.
    """
    tokens, is_said, took = 0, False, list[float]()
    started = saved = since = pauses.working_time()

    def save(older_than: float) -> None:
        nonlocal saved, is_said
        if pauses.working_time() - saved >= older_than:
            saved = pauses.working_time()
            try:
                run.save()
                is_said = False
            except EXPECTED as error:
                if not is_said:
                    screen.show_problem(f"{sentence(error)}: the training goes on, and tries again to save its state")
                is_said = True

    def prepare_pause() -> None:
        screen.show_phase("paused")
        save(older_than=PAUSE_SAVES)

    _remember_text(run)  # before the first step: whatever becomes of the text later, nothing of the training hangs on it
    with stop_on_signal() as stop:
        for event in run.steps():
            tokens, seconds = tokens + event.tokens, pauses.working_time() - since
            if event.phase == "expert" and event.validation_loss is None:
                took.append(seconds)
            run.count(event)
            if limit is not None:
                limit.after(event, seconds)
            screen.show_step(event, tokens)
            if event.problem is not None:
                screen.show_problem(event.problem)
            if not screen.is_read():
                stop.append(signal.SIGPIPE)
            if fleet is not None:
                fleet.after(event)
            if not stop and not run.is_done:
                save(older_than=run.settings.train.checkpoint_minutes * 60)
                pauses.wait(stop, prepare_pause)
                screen.show_phase(event.phase)
            if stop:
                break
            since = pauses.working_time()
        if fleet is not None:
            fleet.end()
        experience.remember(run.home, run.settings.model.expert_form, run.plan, took[1:])  # the first follows a validation
        version = _end(run, screen)  # in here: a second word of `--stop` must not end the process before all is saved
    return Outcome(tokens, pauses.working_time() - started, version)


def _remember_text(run: TrainingRun) -> None:
    """How long tokens are, where all of the shared training text was counted; what cannot be read is not noted."""
    if run.passage.start or run.passage.end:
        return
    with suppress(*EXPECTED):
        text = corpus(run.home, run.settings).sizes(local=False)["training"]
        experience.remember_text(run.home, text["bytes"], len(run.rows[0]) * run.plan.context)


def _end(run: TrainingRun, screen: Screen) -> int | None:
    """Saves and publishes; on a full disk in the room of the training's own cache, or the model without the training's state."""
    try:
        return run.end()
    except EXPECTED:
        run.drop_caches()
    try:
        return run.end()
    except EXPECTED as error:
        with suppress(*EXPECTED):
            if version := run.publish():
                screen.show_problem(f"{sentence(error)}; the model is saved, the training's own state is not")
                return version
        then = "goes on from the last state that was saved: comigs-edge train --resume" if run.is_saved else "begins anew"
        raise ComigsError(f"what was learned could not be saved: {sentence(error)}; the next training {then}") from error


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 comes; a second Ctrl-C or SIGTERM ends the process at once.

    SIGHUP says that the terminal is gone, often more than once; where it is ignored (nohup), it stays so. SIGUSR1 is the word
    of `train --stop`, which may be said as often as one likes.
    """
    patient = (signal.SIGHUP, signal.SIGUSR1)
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        with suppress(OSError):  # who was to read it may be gone: what is only said never stops the saving
            os.write(2, b"\nstopping after this step; everything will be saved\n")
        signal.signal(number, signal.SIG_IGN if number in patient else signal.SIG_DFL)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
