"""The plan's word about time, after a training has shown better."""

from dataclasses import replace

import pytest

from comigs_edge.home.folder import Home
from comigs_edge.planning import experience
from profiles.cost import Plan, Rates, Sizes, step_seconds

PLAN = Plan(
    specialists=1, batch=8, context=128, threads=2, precision="float32", keep=True, checkpointing="none", memory=0,
    step_seconds=4.0,
)  # fmt: skip
RATES = Rates(products={"float32": 1e11, "bfloat16": 2e11}, threads=2)
SIZES = Sizes(
    num_blocks=2, width=64, ff_width=128, heads=2, queries=64, keys=64, vocab_size=256, context_length=256, is_tied=True,
    file_size=1, expert_weights=10,
)  # fmt: skip


@pytest.fixture
def home(tmp_path):
    (tmp_path / "state").mkdir()
    return Home(tmp_path)


def factor(home, form="parallel", **lines):
    """By which the prediction for the plan with these lines is longer than without experience."""
    plan = replace(PLAN, **lines)
    return step_seconds(SIZES, plan, experience.with_experience(home, form, RATES)) / step_seconds(SIZES, plan, RATES)


def test_what_steps_took_corrects_the_next_prediction_for_this_form_and_mode_alone(home):
    experience.remember(home, "parallel", PLAN, [5.0, 5.0, 5.0, 5.0, 30.0, 5.0])  # one beside another program
    assert factor(home) == pytest.approx(1.25)
    others = ({"keep": False}, {"checkpointing": "block"}, {"precision": "bfloat16"}, {"form": "lora"}, {"cuda_graph": True})
    assert [factor(home, **each) for each in others] == [1.0] * 5


def test_a_note_of_an_earlier_version_that_knew_no_modes_corrects_nothing(home):
    (home.state / "pace.json").write_bytes(b'{"parallel cpu float32": 1.227}')
    assert factor(home) == factor(home, keep=False, checkpointing="block") == 1.0
    experience.remember(home, "parallel", PLAN, [5.0] * 6)
    assert factor(home) == pytest.approx(1.25)


def test_a_prediction_that_was_corrected_already_is_corrected_further(home):
    experience.remember(home, "parallel", PLAN, [5.0] * 6)
    experience.remember(home, "parallel", replace(PLAN, step_seconds=5.0), [6.0] * 6)
    assert factor(home) == pytest.approx(1.5)


@pytest.mark.parametrize(
    "content", [None, b"", b"[1]", b'{"parallel cpu float32 kept none": "x"}', b'{"parallel cpu float32 kept none": null}']
)
def test_a_missing_or_damaged_note_counts_as_none(home, content):
    if content is not None:
        (home.state / "pace.json").write_bytes(content)
    assert factor(home) == 1.0
    experience.remember(home, "parallel", PLAN, [5.0] * 6)
    assert factor(home) == pytest.approx(1.25)


def test_steps_whose_lower_blocks_a_cache_computes_say_nothing_of_those_without(home):
    experience.remember(home, "parallel", replace(PLAN, cache=True), [5.0] * 6)
    assert factor(home) == 1.0


def test_without_a_prediction_there_is_nothing_to_correct(home):
    experience.remember(home, "parallel", replace(PLAN, step_seconds=None), [5.0] * 6)
    assert factor(home) == 1.0


def test_a_few_steps_say_nothing_and_what_is_impossible_is_bounded(home):
    experience.remember(home, "parallel", PLAN, [50.0] * 4)
    assert factor(home) == 1.0
    experience.remember(home, "parallel", PLAN, [500.0] * 6)
    assert factor(home) == pytest.approx(experience.BOUNDS[1])
    experience.remember(home, "parallel", PLAN, [0.001] * 6)
    assert factor(home) == pytest.approx(experience.BOUNDS[0])
