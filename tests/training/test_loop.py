"""The order in which a training steps, saves, pauses, exchanges and shows itself."""

import errno
import os
import signal
from types import SimpleNamespace

import pytest

from comigs_edge.errors import ComigsError
from comigs_edge.planning import experience
from comigs_edge.training.event import Event
from comigs_edge.training.loop import run_training, stop_on_signal

MINUTE = 60.0


class Life:
    """A training of three steps of two minutes each; everything that happens is written down."""

    def __init__(self, checkpoint_minutes, signal_at=None):
        self.now, self.log, self.done, self.signal_at = 0.0, [], 0, signal_at
        settings = {"train": SimpleNamespace(checkpoint_minutes=checkpoint_minutes), "model": SimpleNamespace(expert_form="lora")}
        self.settings = SimpleNamespace(**settings)
        self.home, self.plan = None, SimpleNamespace(step_seconds=None)
        self.passage = SimpleNamespace(start=5, end=5)  # of a text that others have read before
        self.trainer = self.fleet = self.screen = self.pauses = self
        self.pause_at = self.unread_at = self.problem_at = self.validated_at = None
        self.phase, self.last, self.counted, self.phases = "expert", 3, [], []

    def steps(self):
        while not self.is_done:
            self.done += 1
            self.now += 2 * MINUTE
            if self.done == self.signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield Event(
                phase=self.phase, expert_steps=self.done, router_steps=0, loss=1.0, tokens=10, is_best=False,
                validation_loss=1.0 if self.done == self.validated_at else None,
                problem="what went wrong" if self.done == self.problem_at else None,
            )  # fmt: skip

    @property
    def is_done(self):
        return self.done >= self.last

    def working_time(self):
        return self.now

    def wait(self, stop, prepare):
        self.log.append("look")
        if self.done == self.pause_at:
            prepare()

    def show_step(self, event, tokens):
        self.log.append(f"step {event.expert_steps}, {tokens} tokens")

    def show_phase(self, phase):
        self.phases.append(phase)
        if phase == "paused":
            self.log.append("paused")

    def count(self, event):
        self.counted.append(event.expert_steps)

    def is_read(self):
        return self.done != self.unread_at

    def show_problem(self, text):
        self.log.append(text)

    def after(self, event):
        self.log.append("exchange")

    def save(self):
        self.log.append("save")

    def end(self):  # of the fleet, and then of the training
        self.log.append("end")
        return 4


def live(life):
    return run_training(life, life.pauses, life.fleet, life.screen)


def test_what_a_step_could_not_do_is_said_with_that_step():
    life = Life(checkpoint_minutes=60)
    life.problem_at = 2
    live(life)
    assert life.log.count("what went wrong") == 1
    assert life.log[life.log.index("what went wrong") - 1] == "step 2, 20 tokens"


def test_after_every_step_it_shows_exchanges_saves_and_looks_whether_to_pause():
    life = Life(checkpoint_minutes=2)
    assert live(life) == (30, 6 * MINUTE, 4)
    assert life.log == [
        "step 1, 10 tokens", "exchange", "save", "look",
        "step 2, 20 tokens", "exchange", "save", "look",
        "step 3, 30 tokens", "exchange", "end", "end",
    ]  # fmt: skip


@pytest.mark.parametrize(("minutes", "saves"), [(1, 2), (3, 1), (5, 0)])
def test_a_checkpoint_is_written_when_its_minutes_have_passed(minutes, saves):
    life = Life(checkpoint_minutes=minutes)
    live(life)
    assert life.log.count("save") == saves


def test_a_pause_saves_what_is_older_than_a_minute():
    life = Life(checkpoint_minutes=60)
    life.pause_at = 2
    live(life)
    assert life.log[life.log.index("paused") + 1] == "save"
    assert life.phases == ["expert", "paused", "expert"]
    life = Life(checkpoint_minutes=2)  # here the step was saved just before
    life.pause_at = 2
    live(life)
    assert life.log[life.log.index("paused") + 1] != "save"


def test_a_signal_ends_it_after_the_step_and_everything_is_ended(capfd):
    before = signal.getsignal(signal.SIGTERM)
    life = Life(checkpoint_minutes=0, signal_at=2)
    assert live(life) == (20, 4 * MINUTE, 4)
    assert life.log[-4:] == ["step 2, 20 tokens", "exchange", "end", "end"]
    assert "stopping after this step" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_that_nobody_reads_any_more_ends_after_the_step_and_is_saved():
    life = Life(checkpoint_minutes=0)
    life.unread_at = 2
    assert live(life) == (20, 4 * MINUTE, 4)
    assert life.log[-4:] == ["step 2, 20 tokens", "exchange", "end", "end"]


def test_without_a_fleet_nothing_is_exchanged():
    life = Life(checkpoint_minutes=0)
    life.fleet = None
    live(life)
    assert "exchange" not in life.log
    assert life.log.count("end") == 1


def test_every_step_is_counted_and_a_limit_is_told_its_seconds_without_what_lay_between():
    life, told = Life(checkpoint_minutes=1), []
    life.after = lambda event: setattr(life, "now", life.now + 7 * MINUTE)  # an exchange
    limit = SimpleNamespace(after=lambda event, seconds: told.append(seconds))
    run_training(life, life.pauses, life.fleet, life.screen, limit)
    assert life.counted == [1, 2, 3]
    assert told == [2 * MINUTE] * 3


# Signals --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal():
    """What becomes of SIGHUP: the end of the terminal."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def test_a_second_word_of_stop_or_of_a_lost_terminal_ends_nothing_a_second_sigterm_all(terminal):
    terminal(signal.SIG_DFL)
    numbers = [signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM]
    with stop_on_signal() as stop:
        for number in numbers:
            os.kill(os.getpid(), number)
        assert stop == numbers
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN, signal.SIG_IGN, signal.SIG_DFL]


def test_a_training_that_is_to_outlive_its_terminal_does(terminal):
    terminal(signal.SIG_IGN)  # as nohup does
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop == []


def test_a_signal_is_taken_though_nobody_can_be_told():
    read, write = os.pipe()
    os.close(read)
    kept = os.dup(2)
    os.dup2(write, 2)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop == [signal.SIGTERM]
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(write)


# Disks that refuse ----------------------------------------------------------------------------------------------------


class FullDisk(Life):
    """From step `full` on nothing can be saved; `helps`: until the training's caches are gone."""

    def __init__(self, full, *, helps=False, publishes=False, is_saved=True):
        super().__init__(checkpoint_minutes=2)
        self.full, self.helps, self.publishes, self.is_saved, self.is_over = full, helps, publishes, is_saved, False

    def save(self):
        if self.done >= self.full:
            raise OSError(errno.ENOSPC, "No space left on device", "/home/state")

    def drop_caches(self):
        self.full = 99 if self.helps else self.full

    def publish(self):
        return 4 if self.publishes else None

    def end(self):
        if self.is_over:
            self.save()
        self.is_over = True  # that was the fleet's end
        return 4


def problems(life):
    return [line for line in life.log if "No space" in line]


def test_a_full_disk_is_said_once_however_often_saving_fails():
    life = FullDisk(full=1, publishes=True)
    assert live(life).version == 4
    first, last = problems(life)
    assert "/home/state cannot be used (No space left on device); make room on that disk: the training goes on" in first
    assert "the model is saved, the training's own state is not" in last


def test_a_disk_that_is_full_once_more_is_said_once_more():
    class Now(Life):
        def save(self):
            if self.done in (1, 3):
                raise OSError(errno.ENOSPC, "No space left on device", "/home/state")

    life = Now(checkpoint_minutes=2)
    life.last = 5
    live(life)
    assert len(problems(life)) == 2


def test_at_the_end_the_trainings_own_cache_makes_room():
    life = FullDisk(full=3, helps=True)
    assert live(life).version == 4
    assert problems(life) == []


@pytest.mark.parametrize(("saved", "then"), [(True, "comigs-edge train --resume"), (False, "begins anew")])
def test_where_nothing_can_be_saved_the_last_sentence_says_what_comes_next(saved, then):
    life = FullDisk(full=1, is_saved=saved)
    with pytest.raises(ComigsError, match=f"what was learned could not be saved: .*{then}"):
        live(life)


def test_text_that_cannot_be_read_any_more_costs_a_training_nothing(monkeypatch):
    def read(*_):
        life.log.append("read")
        raise ComigsError("data.db is damaged")

    life = Life(checkpoint_minutes=60)
    life.passage = SimpleNamespace(start="", end="")
    monkeypatch.setattr("comigs_edge.training.loop.corpus", read)
    assert live(life) == (30, 6 * MINUTE, 4)
    assert (life.log[0], life.log[-2:]) == ("read", ["end", "end"])


@pytest.fixture
def told(monkeypatch):
    """What the next plan is told: seconds of steps, once a training."""
    told = []
    monkeypatch.setattr(experience, "remember", lambda *words: told.append(words[3]))
    return told


def test_the_next_plan_is_told_what_expert_steps_took_without_what_lay_between_them(told):
    life = Life(checkpoint_minutes=1)
    life.after = lambda event: setattr(life, "now", life.now + 7 * MINUTE)  # an exchange
    live(life)
    assert told == [[2 * MINUTE, 2 * MINUTE]]


@pytest.mark.parametrize(("validated_at", "phase", "count"), [(2, "expert", 1), (3, "expert", 1), (None, "router", 0)])
def test_the_next_plan_is_told_of_no_step_with_a_validation_and_of_none_of_routers(told, validated_at, phase, count):
    life = Life(checkpoint_minutes=1)
    life.validated_at, life.phase = validated_at, phase
    live(life)
    assert told == [[2 * MINUTE] * count]
