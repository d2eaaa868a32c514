"""The steps of the local phase: how many, at which rates, of which text, and where they go on."""

import pytest

from comigs_edge.arrays import digest
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.nn.model import Model
from comigs_edge.training.batches import Rows
from comigs_edge.training.local import LocalPhase, LocalText, local_steps, total_local_steps
from tests.training.test_trainer import schedule


def rows(token, count=12):
    """So many rows of one token alone."""
    return Rows([Encoded([token] * (8 * count + 1), [True] * (8 * count + 1))], 8, 0)


@pytest.fixture
def phase(tiny_base, make_adapters):
    """One of 20 expert steps, two rows each, behind a training with this schedule."""

    def make(training=7, validation=9, ordinary=None, zero=False, start=None, **changes):
        text = LocalText(training=rows(training), validation=rows(validation), shared=rows(5))
        usual = schedule(**{"steps": 20, "router_period": 5, "router_steps": 1} | changes)
        start = start or make_adapters(zero=zero)
        return LocalPhase(start, text, usual, ordinary, lambda adapters: Model(tiny_base, adapters))

    return make


def expert_rates(phase):
    return [phase.trainer.experts.learning_rate for event in phase.trainer.run() if event.phase == "expert"]


@pytest.mark.parametrize(("rows", "steps", "found"), [
    (1, 50, 5),  # a period at least, that the router has a turn
    (9, 50, 27),  # three passes of one local row a step
    (100, 50, 50),  # no more than the training has
    (9, 20, 20),
])  # fmt: skip
def test_it_reads_local_rows_three_times_in_no_more_steps_than_a_training_has(rows, steps, found):
    usual = schedule(steps=steps, router_period=5, router_steps=2)
    assert local_steps(rows, usual) == found
    assert total_local_steps(rows, usual) == found + 2 * -(-found // 5)


def test_behind_a_short_training_that_goes_on_it_may_be_as_long_as_behind_a_first_one():
    assert local_steps(9, schedule(steps=4, router_period=5)) == 4
    assert local_steps(9, schedule(steps=4, router_period=5).slow()) == 27
    assert local_steps(10**6, schedule(steps=4, router_period=5).slow()) == 200  # the most of a first one by default
    assert local_steps(10**6, schedule(steps=400, router_period=5).slow()) == 400


def test_its_warm_up_is_a_tenth_of_it_at_most_and_its_rates_fall_to_its_own_end(phase):
    rates = expert_rates(phase(warmup_steps=10))
    assert len(rates) == 20
    assert [rates[step] for step in (0, 1, 2, 11)] == pytest.approx([0.005, 0.01, 0.01, 0.0055])
    assert expert_rates(phase(warmup_steps=1))[0] == pytest.approx(0.01)


def test_a_rate_that_patience_let_fall_is_constant_again_until_its_own_end(phase):
    rates = expert_rates(phase(schedule="wsd", decay_from=3))
    assert rates == pytest.approx([0.01] * 18 + [0.007, 0.004])


def test_patience_does_not_end_it(phase):
    one = phase(patience=1, expert_learning_rate=0.0, final_learning_rate=0.0, router_learning_rate=0.0)  # nothing gets better
    assert len(expert_rates(one)) == 20
    assert one.is_done
    assert not one.is_kept


@pytest.mark.parametrize(("zero", "ordinary", "counts"), [
    (True, rows(11), {9: 3, 11: 1}), (True, None, {9: 4}), (False, rows(11), {9: 4}),
])  # fmt: skip
def test_a_router_with_a_zero_expert_learns_from_ordinary_text_too(phase, zero, ordinary, counts):
    one = phase(zero=zero, ordinary=ordinary, batch=4)
    batch = one.trainer.router_rows.batch(0, 4)
    assert {token: int((batch.tokens[:, 0] == token).sum()) for token in counts} == counts
    if len(counts) == 2:
        assert batch.weights.view(4, 8)[batch.tokens[:, 0] == 11].sum() == pytest.approx(0.2)  # their own counts four times


@pytest.mark.parametrize(("text", "is_same"), [({}, True), ({"training": 8}, False), ({"validation": 8}, False)])
def test_of_the_same_text_it_goes_on_and_of_other_text_it_begins_anew(phase, text, is_same):
    cut, straight, other = phase(), phase(), phase(**text)
    before = digest(other.trainer.adapters.arrays())
    for _, _ in zip(range(3), cut.trainer.run(), strict=False):
        pass
    arrays, progress = cut.state()
    other.restore({name: array.copy() for name, array in arrays.items()}, progress)
    assert (other.steps == 3) == (digest(other.trainer.adapters.arrays()) != before) == is_same
    for one in (straight, other):
        for _ in one.trainer.run():
            pass
    assert (digest(other.trainer.adapters.arrays()) == digest(straight.trainer.adapters.arrays())) == is_same


def test_its_steps_are_counted_behind_all_others(phase):
    main, one = phase().trainer, phase(steps=2, router_period=1)
    main.expert_steps, main.router_steps = 30, 6
    events = [*one.run(main, 10)]
    assert [(event.phase, event.expert_steps, event.router_steps) for event in events] == [
        ("local", 30, 16 + number) for number in range(1, 5)
    ]
    assert not any(event.is_best for event in events)
    assert one.steps == 4


def test_it_is_kept_once_it_is_done_and_has_found_something_better(phase):
    one = phase()
    kept = [one.is_kept for _ in one.trainer.run()]
    assert kept == [False] * (len(kept) - 1) + [True]
    assert one.facts() == {"all_validation_loss_before": one.trainer.first_loss, "all_validation_loss": one.trainer.best_loss}
    assert one.trainer.best_loss < one.trainer.first_loss


def test_what_it_begins_with_stays_as_it_is(phase, make_adapters):
    start = make_adapters()
    before, one = digest(start.arrays()), phase(start=start)
    for _ in one.trainer.run():
        pass
    assert digest(start.arrays()) == digest(one.start) == before != digest(one.trainer.adapters.arrays())
