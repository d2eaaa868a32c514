"""A training that waits: what it says and saves, when it goes on, and that it ends with the same bits."""

import json
import os
import signal

import pytest

from comigs_edge.home import config
from comigs_edge.training import pauses
from comigs_edge.training.pauses import Pauses
from comigs_edge.training.trainer import Trainer
from profiles import watch
from profiles.watch import Limits, Readings

LIMITS = Limits(80.0, 70.0, 30, 40, 100_000_000, 200_000_000, 0.5, 0.25)
REMEDY = " ([pause] in config.toml has the limits, train --no-pause has none)"
COOL, HOT, WARM = (Readings(temperature=degrees) for degrees in (50.0, 85.0, 75.0))


class World:
    """A clock that sleep moves, and readings that follow one another; the last one stays."""

    def __init__(self, *script, released=0, limits=LIMITS):
        self.script, self.now, self.lines, self.calls, self.stop, self.stop_at = list(script), 100.0, [], [], [], None
        self.released = released
        self.pauses = Pauses(limits, self.lines.append, self.release, self.read, lambda: self.now, self.sleep)

    def read(self):
        self.calls.append("read")
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def release(self):
        self.calls.append("release")
        return self.released

    def sleep(self, seconds):
        assert 0 < seconds <= 0.2
        self.now += seconds
        if self.stop_at is not None and self.now >= self.stop_at:
            self.stop.append(signal.SIGINT)

    def wait(self):
        self.pauses.wait(self.stop, lambda: self.calls.append("prepare"))


def test_it_pauses_says_so_once_saves_once_and_resumes():
    world = World(HOT, HOT, WARM, WARM, COOL)
    world.wait()
    assert world.lines == [f"paused: 85 °C, resumes below 70{REMEDY}", "going on after 20 seconds"]
    world.script, world.now = [HOT, COOL], world.now + 10
    world.wait()
    assert world.lines[2:] == ["paused: 85 °C, resumes below 70", "going on after 5 seconds"]  # what can be done is known
    assert world.calls == [*["read", "prepare"], *["read"] * 4, "read", "prepare", "read"]
    assert world.pauses.seconds == pytest.approx(25)  # four readings, five seconds apart


def test_without_a_reason_it_only_looks_every_five_seconds():
    world = World(COOL)
    for _ in range(21):
        world.wait()
        world.now += 0.5
    assert (world.calls, world.lines, world.pauses.seconds) == (["read"] * 3, [], 0)


def test_without_limits_it_never_looks():
    world = World(HOT, limits=None)
    world.wait()
    assert world.calls == []


def test_a_signal_ends_the_pause_at_once():
    world = World(HOT)
    world.stop_at = 131.3
    world.wait()
    assert world.now == pytest.approx(131.4, abs=0.11)
    assert world.lines == [f"paused: 85 °C, resumes below 70{REMEDY}"]
    assert world.pauses.seconds == pytest.approx(world.now - 100)


def test_the_clock_of_work_stands_still_while_paused():
    world = World(HOT, COOL, COOL)
    before = world.pauses.working_time()
    during = []
    world.pauses.wait([], lambda: during.append(world.pauses.working_time()))
    assert during == [pytest.approx(before)]
    assert world.pauses.working_time() == pytest.approx(before)
    world.now += 7
    assert world.pauses.working_time() == pytest.approx(before + 7)


def test_a_new_reason_is_said_and_an_old_one_is_not_said_again():
    low = Readings(temperature=75.0, on_battery=True, battery=20)
    world = World(HOT, low, low, WARM, HOT, COOL)
    world.wait()
    assert world.lines == [
        f"paused: 85 °C, resumes below 70{REMEDY}",
        "paused: 75 °C, resumes below 70; battery at 20 %, resumes at 40 or when plugged in",
        "going on after 25 seconds",
    ]


def test_memory_is_given_back_before_saving_and_must_be_there_again():
    def left(megabytes):
        return Readings(memory_left=megabytes * 10**6)

    # 90 MB are left and 300 are given back: that makes 390, of which the next step takes 300.
    world = World(left(90), left(390), left(499), left(500), released=300_000_000)
    world.wait()
    assert world.calls == ["read", "release", "prepare", "read", "read", "read"]
    assert world.lines == [f"paused: 90 MB of memory left, resumes at 500{REMEDY}", "going on after 15 seconds"]


def test_memory_that_stays_short_is_waited_for_and_a_way_out_is_said_once():
    short = Readings(memory_left=90_000_000)
    world = World(*[short] * 500, Readings(memory_left=300_000_000))
    world.wait()
    assert [line.split(":")[0] for line in world.lines] == ["paused", "still too little memory", "going on after 41.7 minutes"]
    assert "[pause]" in world.lines[1]


def test_the_defaults_of_the_settings_are_those_of_the_limits(tmp_path):
    default = config.PauseConfig()
    assert watch.limits(None, default.battery, default.memory_mb * 10**6, default.load, tmp_path) == Limits()


# In a training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(ready, monkeypatch):
    """A home whose trainings look before each step, and a function that sets what they read."""
    settings = ready / "config.toml"
    text = settings.read_text().replace("enabled = false", "enabled = true")
    settings.write_text(text.replace("# temperature = 95.0 ", "temperature = 80.0 "))
    monkeypatch.setattr(pauses, "INTERVAL", 0.0)
    return lambda read: monkeypatch.setattr(watch, "readings", read)


def slow(world, step):
    """Steps of six seconds."""

    def take(trainer):
        world.now += 6
        return step(trainer)

    return take


def train(run, *arguments):
    result = run("train", "--fresh", "--steps", "6", "--json", "--plan", "backend=blas", *arguments)
    return json.loads(result.stdout), result.stderr


def test_a_training_with_pauses_ends_with_the_same_bits(guarded, run):
    straight, quiet = train(run)
    assert straight["paused_seconds"] == 0
    assert "paused" not in quiet
    readings = iter([COOL, HOT, WARM, COOL, HOT, COOL] * 20)
    guarded(lambda load: next(readings))
    paused, said = train(run)
    assert said.count("paused: 85 °C, resumes below 70") > 2
    assert said.count("going on after 0 seconds") == said.count("paused: ")
    assert {key: paused[key] for key in ("adapters_sha256", "best_sha256", "tokens", "finished")} == {
        key: straight[key] for key in ("adapters_sha256", "best_sha256", "tokens", "finished")
    }


def test_paused_time_is_not_the_trainings(ready, run, monkeypatch):
    world = World(COOL, COOL, HOT, HOT, COOL, HOT, COOL)
    world.pauses = Pauses(LIMITS, world.lines.append, read=world.read, clock=lambda: world.now, sleep=world.sleep)
    monkeypatch.setattr(pauses, "open_pauses", lambda *_: world.pauses)
    monkeypatch.setattr(Trainer, "step", slow(world, Trainer.step))
    result, _ = train(run)
    assert world.lines == [
        f"paused: 85 °C, resumes below 70{REMEDY}", "going on after 10 seconds",
        "paused: 85 °C, resumes below 70", "going on after 5 seconds",
    ]  # fmt: skip
    assert (result["seconds"], result["paused_seconds"]) == (16 * 6, 15)  # 6 expert, 4 router and 6 closing steps


def test_ctrl_c_ends_a_pause_and_nothing_is_lost(guarded, run):
    straight, _ = train(run)
    readings = iter([COOL] * 3 + [HOT] * 2)

    def read(load):
        now = next(readings, None)
        if now is None:
            os.kill(os.getpid(), signal.SIGINT)
        return now or HOT

    guarded(read)  # the signal comes while it is paused
    stopped, said = train(run)
    assert "paused: 85" in said
    assert "going on" not in said
    assert not stopped["finished"]
    assert 0 < stopped["expert_steps"] < 6
    resumed = json.loads(run("train", "--resume", "--no-pause", "--json").stdout)  # still hot
    assert resumed["finished"]
    assert resumed["adapters_sha256"] == straight["adapters_sha256"]
