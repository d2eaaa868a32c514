"""A training whose text changes before it is resumed loses nothing, and costs nothing of what was there."""

import json
import math

import numpy as np
import pytest

from comigs_edge.arrays import digest
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import load, remove, versions
from comigs_edge.nn.adapters import Adapters
from comigs_edge.training import checkpoint
from tests.training.test_known import open_training, train, write_notes
from tests.training.test_line import distance_to


@pytest.fixture
def home(ready):
    home = Home(ready)
    home.state.mkdir(exist_ok=True)
    return home


def interrupted(home, run, tmp_path, resume=None):
    """A training further of which two steps were done, and then text was added; where it began, its best, and where it is."""
    first = open_training(home, resume)
    trainer = first.begin(None, resume)
    start = trainer.adapters.arrays()
    for _ in trainer.run(2):
        pass
    best = {name: array + np.float32(0.5) * (trainer.adapters.arrays()[name] - array) for name, array in start.items()}
    trainer.best, trainer.last_loss, trainer.scores, trainer.stale_periods = best, 9.0, [[0.9, 0.1]], 1  # of the other text
    first.save()
    write_notes(run, tmp_path, "later")
    resumed = open_training(home)
    trainer = resumed.begin(None, None)
    assert any("has changed since this training began" in warning for warning in resumed.warnings)
    assert (trainer.first_loss, trainer.best_loss, trainer.scores, trainer.stale_periods) == (None, math.inf, None, 0)
    assert math.isnan(trainer.last_loss)
    return trainer, start, best, trainer.adapters.arrays()


@pytest.mark.parametrize("nearest", ["start", "best", "present"])
def test_start_best_and_present_state_are_measured_and_none_is_lost(home, run, tmp_path, nearest):
    train(home)
    write_notes(run, tmp_path)
    trainer, *states = interrupted(home, run, tmp_path)
    goal = dict(zip(("start", "best", "present"), states, strict=True))[nearest]
    trainer.validate = distance_to(trainer.adapters, goal)
    next(trainer.run())
    assert trainer.first_loss == pytest.approx(distance_to(Trained(states[0]), goal)())
    assert digest(trainer.best) == digest(goal)
    assert trainer.best_loss == pytest.approx(0)
    assert trainer.is_better == (nearest != "start")


class Trained:
    """Arrays as `distance_to` asks for them."""

    def __init__(self, arrays):
        self.arrays = lambda: arrays


def test_it_goes_on_from_the_present_state_whatever_was_best(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path)
    trainer, start, _, present = interrupted(home, run, tmp_path)
    trainer.validate = distance_to(trainer.adapters, start)
    until = trainer.run()
    trainer.step = lambda: digest(trainer.adapters.arrays())
    assert next(until) == digest(present)


@pytest.mark.parametrize("is_old", [False, True])
def test_what_an_interruption_left_is_not_what_it_began_with(home, run, tmp_path, is_old):
    train(home)
    write_notes(run, tmp_path)
    first = open_training(home)
    trainer = first.begin(None, None)
    start = trainer.adapters.arrays()
    for _ in trainer.run(2):
        pass
    trainer.best, trainer.best_loss = trainer.adapters.arrays(), trainer.first_loss - 1
    assert first.end() == 2
    if is_old:  # an earlier version does not say with which one it began
        state = checkpoint.load(home.state)
        del state.progress["from_version"]
        checkpoint.save(home.state, state.arrays, state.progress)
        again = open_training(home)  # which does not forget it
        again.begin(None, None)
        again.save()
    write_notes(run, tmp_path, "later")
    resumed = open_training(home).begin(None, None)
    assert digest(resumed.start) == digest(start)
    assert digest(resumed.best) != digest(start)


def test_a_fresh_training_began_with_the_base(home, run, tmp_path):
    train(home)
    trainer, start, *_ = interrupted(home, run, tmp_path, resume=False)
    assert Adapters.from_arrays(trainer.adapters.layout, trainer.adapters.hparams, trainer.start).is_initial
    assert digest(trainer.start) == digest(start)


@pytest.mark.parametrize("in_fleet", [False, True])
def test_what_an_interruption_left_goes_where_today_s_text_finds_it_no_better(home, run, tmp_path, in_fleet):
    train(home)
    write_notes(run, tmp_path)
    if in_fleet:
        home.fleet.mkdir()
    first = open_training(home)
    trainer = first.begin(None, None)
    for _ in trainer.run(2):
        pass
    trainer.best, trainer.best_loss = trainer.adapters.arrays(), trainer.first_loss - 1
    assert first.end() == 2
    write_notes(run, tmp_path, "later")
    resumed = open_training(home)
    trainer = resumed.begin(None, None)
    trainer.validate = distance_to(trainer.adapters, trainer.adapters.arrays() if in_fleet else trainer.start)
    for _ in resumed.steps():
        pass
    assert resumed.end() is None
    assert versions(home.adapters) == ([1, 2] if in_fleet else [1])  # in a fleet it was not measured again
    assert in_fleet or open_training(home).rows[0].num_new  # and nothing of it is known


@pytest.mark.parametrize("is_damaged", [False, True])
def test_where_the_version_is_gone_the_one_before_is_what_it_began_with(home, run, tmp_path, is_damaged):
    train(home)
    before = load(home.adapters, open_training(home).base.hparams, home.settings().base.sha256).arrays
    write_notes(run, tmp_path)
    train(home)
    write_notes(run, tmp_path, "more")
    trainer = open_training(home).begin(None, None)
    assert versions(home.adapters) == [1, 2]
    first = open_training(home)
    trainer = first.begin(None, None)
    next(trainer.run())
    first.save()
    if is_damaged:
        (home.adapters / "0002" / "router.safetensors").write_bytes(b"")
    else:
        remove(home.adapters, [2])
    write_notes(run, tmp_path, "later")
    assert digest(open_training(home).begin(None, None).start) == digest(before)


def test_who_left_a_fleet_has_what_the_training_began_with(home, run, tmp_path):
    train(home)
    made = versions(home.adapters)[-1]
    path = home.adapters / f"{made:04d}" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fleet_mark": "somewhere"}))
    trainer, start, *_ = interrupted(home, run, tmp_path)
    assert not trainer.schedule.goes_on  # the whole rate
    assert digest(trainer.start) == digest(start)
    assert not Adapters.from_arrays(trainer.adapters.layout, trainer.adapters.hparams, start).is_initial


def test_in_a_fleet_the_present_state_is_to_be_beaten(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path)
    home.fleet.mkdir()
    trainer, _, _, present = interrupted(home, run, tmp_path)
    assert trainer.start is None
    assert digest(trainer.best) == digest(present)
