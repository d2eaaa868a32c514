"""The curves of a training: means by hand, a bound on their size, and the same after an interruption."""

import json
import re

import pytest

from comigs_edge.training import checkpoint
from comigs_edge.training.curves import MOST, Curves


def drawn(losses):
    curves = Curves()
    for step, loss in enumerate(losses, 1):
        curves.add_training(step, loss)
    return curves


def test_a_short_training_has_a_point_for_each_step():
    assert drawn([3.0, 2.0, 1.5]).training == [(1, 3.0), (2, 2.0), (3, 1.5)]


def test_a_long_training_has_the_means_of_equal_stretches():
    curves = drawn([float(step) for step in range(MOST)] + [7.0, 9.0, 11.0])
    assert curves.training[:2] == [(2, 0.5), (4, 2.5)]
    assert curves.training[-1] == (MOST + 2, 8.0)  # 11 waits for the step after it
    assert len(curves.training) == MOST // 2 + 1


def test_however_long_a_training_is_its_curves_stay_small_and_reach_its_end():
    curves = Curves()
    for step in range(1, 100_001):
        curves.add_training(step, 1.0)
        curves.add_validation(step, 2.0)
    assert len(curves.training) <= MOST
    assert len(curves.validation) <= MOST
    assert curves.training[-1][0] > 99_000
    assert (curves.validation[0], curves.validation[-1]) == ((1, 2.0), (100_000, 2.0))
    assert len(json.dumps(curves.facts())) < 20_000


def test_a_loss_that_is_no_number_is_no_point():
    curves = Curves()
    curves.add_validation(3, float("nan"))
    assert curves.validation == []


@pytest.mark.parametrize("kill", [1, 300, MOST])
def test_curves_that_went_through_a_checkpoint_are_those_without_an_interruption(kill):
    losses = [1 / step for step in range(1, 700)]
    straight, first = drawn(losses), drawn(losses[:kill])
    second = Curves(json.loads(json.dumps(first.facts())))
    for step, loss in enumerate(losses[kill:], kill + 1):
        second.add_training(step, loss)
    assert second.facts() == straight.facts()


def kept(home):
    return checkpoint.load(home / "state").progress["curves"]


def test_a_checkpoint_keeps_the_losses_that_a_training_says(ready, run):
    said = run("train", "--steps", "8").stderr
    curves = kept(ready)
    assert [step for step, _ in curves["training"]] == list(range(1, 9))
    assert [step for step, _ in curves["validation"]] == [0, 4, 8]
    for step, loss in curves["validation"][1:]:
        assert re.search(rf"expert step {step}/8, .*, validation {loss:.4f}\n", said)


def test_a_checkpoint_of_a_version_without_curves_goes_on_without_those_before(ready, run):
    from comigs_edge.home.folder import Home

    plan = ("--plan", "zero_expert=false")
    run("train", "--steps", "8", *plan)
    state = checkpoint.load(Home(ready).state)
    del state.progress["curves"]
    checkpoint.save(Home(ready).state, state.arrays, state.progress | {"finished": False, "expert_steps": 4, "router_steps": 2})
    json.loads(run("train", "--resume", "--json", *plan).stdout)
    assert [step for step, _ in kept(ready)["training"]] == [5, 6, 7, 8]
