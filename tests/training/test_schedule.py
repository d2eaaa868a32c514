"""Every setting of a training reaches its schedule; the learning rate warms up and follows a cosine."""

import math
from dataclasses import fields

import pytest

from comigs_edge.home.config import BaseConfig, Config, ModelConfig, QuantizeConfig, TrainConfig
from comigs_edge.training.schedule import Schedule, make_schedule
from tests.training.test_trainer import schedule

BASE = BaseConfig("tiny", "ab" * 32, 1)
TRAIN = TrainConfig(
    steps=7, batch=3, expert_learning_rate=0.5, final_learning_rate=0.25, router_learning_rate=0.125,
    router_offset_rate=0.0625, rates_by_weight=False, warmup_steps=5, router_period=11, router_steps=13,
    balance_weight=0.03, weight_decay=0.07, validation_rows=17, closing_steps=19, schedule="wsd", patience=3, optimiser="adamw",
)  # fmt: skip
MODEL = ModelConfig(expert_form="parallel", zero_expert=True)
ELSEWHERE = {
    "context",
    "threads",
    "precision",
    "base",
    "checkpointing",
    "cache_mb",
    "checkpoint_minutes",
    "seed",
    "ordinary_tokens",
    "passes",
}


def test_every_setting_of_a_training_reaches_its_schedule():
    plan, default = make_schedule(Config(base=BASE, model=MODEL, train=TRAIN), TRAIN.batch, None), TrainConfig()
    usual = make_schedule(Config(base=BASE, model=MODEL), TRAIN.batch, None)
    names = {each.name for each in fields(TrainConfig)} - ELSEWHERE
    assert names <= {each.name for each in fields(Schedule)}
    for name in names:
        assert getattr(plan, name) == getattr(TRAIN, name) != getattr(default, name), name
        assert getattr(default, name) in (None, getattr(usual, name)), name


def test_how_the_file_holds_the_experts_reaches_the_schedule():
    settings = Config(base=BASE, quantize=QuantizeConfig(format="Q4_0", start=0.3))
    plan = make_schedule(settings, 8, 9)
    assert (plan.steps, plan.block_format, plan.quantise_start) == (9, "Q4_0", 0.3)


@pytest.mark.parametrize(("form", "rate", "optimiser"), [("lora", 4e-3, "adamw"), ("parallel", 1.2e-2, "muon")])
def test_each_form_learns_as_it_was_measured_to_be_best(form, rate, optimiser):
    plan = make_schedule(Config(base=BASE, model=ModelConfig(expert_form=form)), 8, None)
    assert (plan.expert_learning_rate, plan.final_learning_rate) == (rate, pytest.approx(rate / 10))
    assert plan.optimiser == optimiser


@pytest.mark.parametrize(
    ("form", "zero", "steps"), [("parallel", None, 20), ("parallel", False, 0), ("lora", None, 0), ("lora", True, 20)]
)
def test_a_training_ends_with_a_zero_expert_by_default_if_experts_are_small(form, zero, steps):
    plan = make_schedule(Config(base=BASE, model=ModelConfig(expert_form=form, zero_expert=zero)), 8, None)
    assert plan.closing == plan.closing_steps == steps


def test_behind_a_short_training_the_closing_phase_is_short_too():
    plans = [schedule(steps=steps, batch=8, closing_steps=60) for steps in (1, 10, 200, 300, 10**6)]
    assert [plan.closing for plan in plans] == [1, 10, 20, 30, 60]


def test_a_closing_phase_of_small_batches_reads_as_many_rows():
    def closing(steps, *batches):
        made = {batch: make_schedule(Config(base=BASE, model=MODEL), batch, steps) for batch in batches}
        return {batch: plan.closing for batch, plan in made.items()}

    assert closing(10**6, 16, 8, 5, 4, 2, 1) == {16: 20, 8: 20, 5: 32, 4: 40, 2: 80, 1: 160}
    assert closing(240, 16, 8, 5, 4, 3, 2, 1) == {16: 20, 8: 20, 5: 24, 4: 24, 3: 27, 2: 40, 1: 80}  # a tenth, or 80 rows
    assert closing(50, 8, 5, 4, 2, 1) == {8: 10, 5: 16, 4: 16, 2: 16, 1: 16}  # but no more than a third of the experts' steps ...
    assert closing(20, 8, 4, 1) == closing(12, 8, 4, 1) == {8: 10, 4: 10, 1: 10}  # ... nor fewer than 10
    assert closing(6, 8, 4, 1) == {8: 6, 4: 6, 1: 6}


def test_a_short_training_that_goes_on_has_a_whole_closing_phase():
    made = [make_schedule(Config(base=BASE, model=MODEL), batch, 3).slow() for batch in (8, 4)]
    assert [plan.closing for plan in made] == [10, 20]


def test_an_interrupted_training_of_an_earlier_version_closes_in_the_steps_that_it_counted():
    new = make_schedule(Config(base=BASE, model=MODEL), 2, 200)
    old = Schedule(**{name: value for name, value in new.facts().items() if name != "closing_rows"})
    assert (new.closing, old.closing, old.keep_course(new, is_closing=True).closing) == (40, 20, 20)
    assert old.keep_course(new, is_closing=False).closing == 20
    assert (
        "closing_rows" not in make_schedule(Config(base=BASE, model=MODEL), 8, 200).facts()
    )  # which earlier versions go on with


def test_learning_rate_warms_up_and_ends_at_the_final_rate():
    plan = schedule(steps=100, warmup_steps=4)
    assert [plan.learning_rate(step) for step in range(4)] == [2.5e-3, 5e-3, 7.5e-3, 1e-2]
    assert plan.learning_rate(4) == pytest.approx(1e-2)
    assert plan.learning_rate(52) == pytest.approx((1e-2 + 1e-3) / 2)
    assert plan.learning_rate(28) == pytest.approx(1e-3 + 9e-3 * (1 + math.sqrt(0.5)) / 2)  # a quarter: no straight line
    assert plan.learning_rate(100) == pytest.approx(1e-3)


def test_a_constant_rate_falls_in_a_line_over_the_last_sixth_of_the_steps():
    plan = schedule(steps=120, warmup_steps=4, schedule="wsd")
    assert [plan.learning_rate(step) for step in (0, 3, 4, 99, 100)] == pytest.approx([2.5e-3, 1e-2, 1e-2, 1e-2, 1e-2])
    assert [plan.learning_rate(step) for step in (110, 115, 120)] == pytest.approx([5.5e-3, 3.25e-3, 1e-3])


def test_where_the_end_is_decided_a_constant_rate_still_falls_over_a_fifth_of_the_steps_so_far():
    plan = schedule(steps=400, schedule="wsd").ended(60)
    assert plan.steps == 72
    assert [plan.learning_rate(step) for step in (59, 60, 66, 72)] == pytest.approx([1e-2, 1e-2, 5.5e-3, 1e-3])
    assert plan.ended(60) == plan.ended(66) == plan
    assert schedule(steps=400, schedule="wsd").ended(61).learning_rate(62) == pytest.approx(1e-3 + 9e-3 * 12 / 13)
    assert schedule(steps=65, schedule="wsd").ended(54).steps == 65  # never more than were asked for


def test_where_the_end_is_decided_a_cosine_ends_at_once():
    plan = schedule(steps=400).ended(60)
    assert (plan.steps, plan.router_due(60), plan.closing) == (60, 40, 0)
    assert schedule(steps=400, batch=8, closing_steps=60).ended(60).closing == 10


def test_the_rate_stays_what_it_was_where_the_end_of_a_long_training_is_decided():
    plan = schedule(steps=200, schedule="wsd", rate_steps=50)
    decided = plan.ended(60)
    assert [each.learning_rate(59) for each in (plan, decided)] == pytest.approx([5e-3, 5e-3])
    assert [decided.learning_rate(step) for step in (60, 66, 72)] == pytest.approx([5e-3, 2.75e-3, 5e-4])
    short = schedule(steps=40, schedule="wsd", rate_steps=50).ended(20)
    assert short.learning_rate(19) == pytest.approx(1e-2)


def test_where_the_end_is_decided_a_cosine_still_has_the_steps_in_the_weights_of_the_file():
    plan = schedule(steps=200, block_format="Q4_0", quantise_start=0.65).ended(90)
    assert [plan.fake_format(step) for step in (89, 90)] == [None, "Q4_0"]
    assert plan.steps == 138  # 90 are 65 % of them
    assert plan.ended(120) == plan
    assert schedule(steps=200, block_format="Q4_0", quantise_start=0.65).ended(150).steps == 150
    assert schedule(steps=200, block_format="Q8_0", quantise_start=0.0).ended(90).steps == 90


def test_a_training_that_goes_on_ends_at_the_rate_at_which_the_one_before_it_ended():
    plan = schedule(steps=100, rate_factor=0.3, warmup_steps=4)
    assert [plan.learning_rate(step) for step in (0, 4, 52, 100)] == pytest.approx([7.5e-4, 3e-3, 2e-3, 1e-3])
    assert schedule(steps=100, rate_factor=0.05).learning_rate(99) == pytest.approx(5e-4)


@pytest.mark.parametrize(("rows", "steps"), [(240, 60), (241, 61), (10_000, 200), (1, 10)])
def test_the_steps_follow_from_the_text_between_ten_and_those_of_the_settings(rows, steps):
    settings = Config(base=BASE)  # which read it twice
    assert make_schedule(settings, 8, None, rows).steps == steps
    assert make_schedule(settings, 8, None).steps == 200  # of text that is not known yet


@pytest.mark.parametrize(("steps", "share"), [(10, 1.0), (50, 1.0), (200, 0.5)])
def test_with_muon_long_trainings_learn_more_slowly_at_the_default_rate_alone(steps, share):
    def rates(**train):
        plan = make_schedule(Config(base=BASE, model=MODEL, train=TrainConfig(**train)), 8, steps)
        return [plan.learning_rate(step) for step in (0, steps)]

    assert rates() == [pytest.approx(share * 1.2e-2), pytest.approx(share * 1.2e-3)]
    assert rates(expert_learning_rate=0.03)[0] == pytest.approx(0.03)
    assert rates(optimiser="adamw")[0] == pytest.approx(1.2e-2)


def test_who_names_the_steps_gets_exactly_those():
    plan = make_schedule(Config(base=BASE, train=TrainConfig(passes=2.0, patience=1)), 8, 300, 30)
    assert (plan.steps, plan.patience) == (300, 0)


def test_a_checkpoint_of_default_settings_holds_nothing_that_earlier_versions_do_not_know():
    assert {field.name for field in fields(Schedule)} - schedule().facts().keys() == {
        "closing_steps", "closing_rows", "schedule", "patience", "decay_from", "optimiser", "rate_steps", "rate_factor"
    }  # fmt: skip
    changed = schedule(schedule="wsd", patience=2, decay_from=0, rate_factor=0.5)
    assert Schedule(**changed.facts()) == changed


def test_fake_quantisation_begins_with_the_step_that_its_share_of_all_steps_names():
    plan = schedule(steps=8, block_format="Q4_0", quantise_start=0.5)
    assert [plan.fake_format(step) for step in range(8)] == [None] * 4 + ["Q4_0"] * 4
    assert schedule(steps=8, block_format="Q4_0", quantise_start=0.0).fake_format(0) == "Q4_0"
    assert schedule(steps=8, block_format="Q4_0").fake_format(7) is None


def test_the_last_period_has_its_router_steps_though_it_is_a_short_one():
    assert schedule(steps=8, router_period=3, router_steps=2).total_steps == 8 + 3 * 2
    assert schedule(steps=9, router_period=3, router_steps=2).total_steps == 9 + 3 * 2
    assert schedule(steps=9, router_period=3, router_steps=2, jointly=True).total_steps == 9
