"""A training that goes on ends with the best of its end and of two states on the way there."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from comigs_edge.arrays import digest
from comigs_edge.commands.train_report import SHARES
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.model import Model
from comigs_edge.training.closing import Closing
from comigs_edge.training.line import find_share, part_of_way
from comigs_edge.training.schedule import ON_THE_WAY
from comigs_edge.training.trainer import Trainer
from tests.training.test_trainer import rows, schedule

STEPS = 4


def make_trainer(base, **changes):
    layout = ExpertsConfig(1, 4, 8.0, 2, form="parallel", expert_width=32)
    adapters = Adapters.initial(layout, base.hparams, 0)
    return Trainer(Model(base, adapters), rows(1), rows(2), schedule(steps=STEPS, router_period=2, **changes).slow())


def distance_to(adapters, goal, offset=0.0):
    """A loss that a person can work out: how far the adapters are from a goal."""

    def measure(*_, **__):
        return offset + sum(float(np.square(adapters.arrays()[name] - goal[name], dtype=np.float64).sum()) for name in goal)

    return measure


def find_way(base, share):
    """Where a training begins and ends, and what lies at this share of the way."""
    whole = make_trainer(base)
    start = whole.adapters.arrays()
    for _ in whole.run():
        pass
    end = whole.adapters.arrays()
    return start, end, {name: start[name] + np.float32(share) * (end[name] - start[name]) for name in start}


def judged(trainer, goal):
    """The trainer with this loss."""
    trainer.validate = distance_to(trainer.adapters, goal)
    return trainer


@pytest.mark.parametrize(("nearest", "share"), [(0.3, 0.25), (0.45, 0.5), (0.9, 1.0), (0.05, 0.0)])
def test_what_is_kept_is_the_best_of_start_half_quarter_and_end(tiny_base, nearest, share, monkeypatch):
    monkeypatch.setattr("tests.training.test_line.STEPS", 2)  # one period: the way begins where the training began
    start, end, goal = find_way(tiny_base, nearest)
    trainer = judged(make_trainer(tiny_base), goal)
    events = list(trainer.run())
    for name, array in trainer.best.items():
        assert array == pytest.approx(start[name] + share * (end[name] - start[name]), abs=1e-6)
    assert digest(trainer.adapters.arrays()) == digest(end)  # and its moments are those of the end
    assert trainer.is_better == events[-1].is_best == (share > 0)
    assert trainer.way == (share or 1.0)


def test_the_way_begins_with_the_best_state_before_the_end(tiny_base):
    trainer = make_trainer(tiny_base)
    losses = iter([5.0, 4.0, 6.0, 3.0, 7.0])  # start, first period, end, half and a quarter of the way between the last two
    trainer.validate = lambda *_, **__: next(losses)
    events, seen = trainer.run(), []
    for event in events:
        if event.validation_loss is not None:
            seen.append((event.validation_loss, trainer.adapters.arrays()))
    assert [loss for loss, _ in seen] == [4.0, 3.0]
    (_, middle), (_, end) = seen
    for name, array in trainer.best.items():
        assert array == pytest.approx((middle[name] + end[name]) / 2, abs=1e-6)
    assert next(losses, None) is None


@pytest.mark.parametrize("is_new", [True, False])
def test_a_new_training_and_one_that_must_not_are_never_judged_on_the_way(tiny_base, is_new):
    trainer = make_trainer(tiny_base)
    if is_new:
        trainer.schedule = schedule(steps=STEPS, router_period=2)
    trainer.looks_back = is_new
    losses = iter([5.0, 6.0, 7.0, 1.0, 1.0])
    trainer.validate = lambda *_, **__: next(losses)
    assert [event.is_best for event in trainer.run() if event.validation_loss is not None] == [False, False]
    assert list(losses) == [1.0, 1.0]


def test_a_training_that_patience_ends_is_judged_on_the_way_too(tiny_base):
    trainer = make_trainer(tiny_base, patience=1)
    losses = iter([5.0, 6.0, 5.5, 4.5])
    trainer.validate = lambda *_, **__: next(losses)
    assert [event.validation_loss for event in trainer.run() if event.validation_loss is not None] == [4.5]
    assert trainer.expert_steps == 2 < STEPS


def test_a_training_that_time_ends_behind_a_validation_is_judged_on_the_way_too(tiny_base):
    trainer = make_trainer(tiny_base)
    losses = iter([5.0, 6.0, 6.0, 5.5, 4.5])  # start, period, the same state once more, half of the way, a quarter
    trainer.validate = lambda *_, **__: next(losses)
    for event in trainer.run():
        if event.validation_loss is not None:
            trainer.schedule = replace(trainer.schedule, steps=2)
    assert (event.validation_loss, event.tokens, event.is_best, trainer.way) == (4.5, 0, True, 0.25)
    assert trainer.is_done
    assert list(trainer.run()) == []


def test_a_training_that_is_made_longer_is_judged_on_its_new_way(tiny_base):
    trainer = make_trainer(tiny_base)
    for _ in trainer.run():
        pass
    assert trainer.way
    trainer.schedule = replace(trainer.schedule, steps=STEPS + 2)
    losses = iter([6.0, 5.5, 4.5])
    trainer.validate, trainer.best_loss = lambda *_, **__: next(losses), 5.0
    assert [event.validation_loss for event in trainer.run() if event.validation_loss is not None] == [4.5]


def test_a_training_that_is_resumed_behind_any_step_keeps_the_same(tiny_base):
    *_, goal = find_way(tiny_base, 0.2)
    whole, states = judged(make_trainer(tiny_base), goal), []
    for _ in whole.run():
        arrays, progress = whole.state()
        states.append(({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(progress))))
    assert whole.way < 1
    for arrays, progress in states:
        other = make_trainer(tiny_base)
        other.restore(arrays, progress)
        for _ in judged(other, goal).run():
            pass
        assert (digest(other.best), other.way, other.best_loss) == (digest(whole.best), whole.way, whole.best_loss)


def test_a_training_that_an_earlier_version_has_closed_is_not_judged_again(tiny_base):
    trainer, other = make_trainer(tiny_base), make_trainer(tiny_base)
    for _ in trainer.run():
        pass
    arrays, progress = trainer.state()
    del progress["way"]
    other.restore(arrays, progress)
    assert other.is_done


def test_states_on_the_way_are_judged_in_the_weights_of_the_file(tiny_base):
    form = {"block_format": "Q4_0", "quantise_start": 1.0}
    trainer = make_trainer(tiny_base, expert_learning_rate=3.0, **form)  # so fast that its end is not the best
    for _ in trainer.run():
        pass
    assert trainer.way < 1
    best = Adapters.from_arrays(trainer.adapters.layout, tiny_base.hparams, trainer.best)
    anew = Trainer(Model(tiny_base, best), rows(1), rows(2), schedule(**form))
    assert anew.validate() == pytest.approx(trainer.best_loss, rel=1e-6) != pytest.approx(anew.validate(False), rel=1e-3)


def test_the_closing_phase_of_a_training_that_goes_on_is_measured_once(tiny_base):
    main = make_trainer(tiny_base, closing_steps=2)
    for _ in main.run():
        pass
    main.first_loss = main.best_loss + 1
    closing = Closing(main, rows(3), 0, lambda adapters: Model(tiny_base, adapters))
    measured, validate = [], closing._trainer.validate
    closing._trainer.validate = lambda *args, **names: measured.append(validate(*args, **names)) or measured[-1]
    events = list(closing.run())
    assert measured == [closing.loss]
    assert [event.validation_loss is None for event in events] == [True] * (len(events) - 1) + [False]
    assert events[-1].validation_loss == closing.loss


def test_what_did_not_move_stays_to_the_last_bit():
    values = np.array([-0.0, 0.0, 0.1, 1e-30, -3.0], np.float32)
    found = part_of_way({"a": values.copy()}, {"a": values.copy()}, 0.25)["a"]
    assert found.tobytes() == values.tobytes()


def test_a_search_leaves_the_adapters_where_they_were(tiny_base):
    adapters = Adapters.initial(ExpertsConfig(1, 4, 8.0, 2), tiny_base.hparams, 0)
    start = adapters.arrays()
    with torch.no_grad():
        for tensor in adapters.named.values():
            tensor += 1
    before = digest(adapters.arrays())
    seen = []

    def measure():
        seen.append(float(adapters.arrays()["router.blk.0"][0, 0] - start["router.blk.0"][0, 0]))
        return 2.0

    assert find_share(adapters, start, math.inf, measure)[1] == 2.0
    assert seen == pytest.approx([0.5, 0.25])
    assert digest(adapters.arrays()) == before
    assert find_share(adapters, start, 1.0, measure) == (1.0, 1.0)


@pytest.mark.parametrize(("rate", "is_told"), [(0.5, False), (8, True)])
def test_training_further_says_which_share_of_its_way_is_kept(ready, run, monkeypatch, rate, is_told):
    run("train", "--steps", "6")
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("[train]\n", f"[train]\nexpert_learning_rate = {rate}\n"))
    shutil.copytree(ready, ready.parent / "twin")
    told = run("train", "--steps", "2").stdout
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(ready.parent / "twin"))
    share = json.loads(run("train", "--steps", "2", "--json").stdout)["share_of_way"]
    assert (share in ON_THE_WAY) == ("of the way from the best model before" in told) == is_told
    assert not is_told or f"kept is {SHARES[share]} of the way" in told
    assert set(SHARES) == set(ON_THE_WAY)
