"""How far one update moves the mean: norms against Python's own integers, bounds against what an attacker tries."""

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.protocol import compress, norms
from coordinator.protocol.aggregate import Mean
from coordinator.protocol.counting import Claim, next_generalist, weigh_round
from coordinator.protocol.rounds import ONE, Rules

number = st.floats(-64, 64, width=32)
positive = st.floats(1e-9, 1e4)


@given(st.lists(number, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_a_norm_is_the_root_of_an_exact_sum_in_any_order(values, random):
    exact = sum(round(Fraction(value) * 2**24) ** 2 for value in values)
    found = norms.l2_norm([np.array(values, np.float32)])
    assert found == math.sqrt(exact) / 2**24
    random.shuffle(values)
    assert norms.l2_norm([np.array([value], np.float32) for value in values]) == found


def test_the_norm_of_the_largest_numbers_in_several_pieces_does_not_overflow():
    assert norms.l2_norm([np.full((3, norms.PIECE), -64.0, np.float32)]) == math.sqrt(3 * norms.PIECE * 64**2)


@pytest.mark.parametrize("format_name", ["float32", "float16", "int8"])
def test_the_norm_of_a_packed_update_is_that_of_its_numbers(format_name):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("a", (5, 7)), ("b", (64,)))}
    packed = compress.pack(arrays, format_name)
    sent = compress.unpack(packed, {name: array.shape for name, array in arrays.items()}, format_name)
    expected = np.linalg.norm(np.concatenate([array.reshape(-1).astype(np.float64) for array in sent.values()]))
    assert norms.l2_norm(compress.unpack_flat(packed, format_name)) == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.floats(10.0, 14.9), min_size=1, max_size=12), st.lists(st.floats(10.0, 14.9), max_size=25))
def test_a_round_of_like_norms_keeps_every_weight(found, before):
    claims = [Claim(ONE // (1 + index), 1000, norm) for index, norm in enumerate(found)]
    assert weigh_round(claims, before, Rules()) == [(claim.weight, claim.weight) for claim in claims]


def test_the_mean_of_like_norms_is_that_worked_by_hand_and_of_a_huge_one_its_bounded_part():
    updates = [{"a": np.array(values, np.float32)} for values in ([3, 4], [-4, 3], [0, -5], [30, 40])]
    claims = [Claim(ONE, 1000, norms.l2_norm(update.values())) for update in updates]
    assert [claim.norm for claim in claims] == [5, 5, 5, 50]

    def mean(count):
        weights = weigh_round(claims[:count], [], Rules())
        changes = [(update, counted, weight) for update, (weight, counted) in zip(updates, weights, strict=False)]
        return next(next_generalist({"a": (2,)}, {"a": np.zeros(2, np.float32)}, changes))["a"].tolist()

    assert mean(3) == [np.float16(-1 / 3), np.float16(2 / 3)]
    share = math.floor(ONE * 7.5 / 50) / ONE  # 1.5 x 5: the huge one counts as if it were 7.5 long
    assert mean(4) == pytest.approx([(-1 + 30 * share) / 4, (2 + 40 * share) / 4], rel=2**-11)


def test_the_first_two_are_measured_by_the_lower_and_zeros_say_nothing():
    assert norms.limit([5.0, 1e6], []) == 7.5
    assert norms.limit([0.0, 4.0], []) == 6.0
    assert norms.limit([0.0], [0.0]) is None
    assert norms.limit([1.0] * 5, [100.0] * 25) == 1.5  # five are enough to say what is usual
    assert norms.bounded(ONE, 10.0, None) == norms.bounded(ONE, None, 1.0) == ONE


def test_with_rounds_before_the_upper_in_the_middle_counts_in_full():
    assert norms.limit([1.0, 8.0], [8.0, 1.0]) == 8.0  # 1.5 x 4.5 is less
    assert norms.limit([4.0, 5.0], [5.0, 4.0]) == 6.75  # and more here


def play(honest, attacker, first):
    """Rounds in which `honest` bring these norms and the attacker one of its own; yields c and the norms that counted."""
    history = [[norm] * len(honest) for norm in first]
    for huge in attacker:
        found = [*honest, huge]
        largest = norms.limit(found, [norm for row in history[-norms.ROUNDS :] for norm in row])
        history.append([norm * norms.bounded(ONE, norm, largest) / ONE for norm in found])
        yield largest, history[-1]


@settings(max_examples=200)
@given(st.lists(positive, min_size=1, max_size=40), st.booleans())
def test_one_of_two_moves_the_mean_by_three_of_the_others_norms_a_round_and_no_more(attacker, has_history):
    for largest, counted in play([1.0], attacker, [1.0] * 5 if has_history else []):
        assert counted[-1] <= largest <= 3.0 + 1e-9


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=40))
def test_one_of_two_that_turns_tiny_does_not_hold_the_other_back(attacker):
    for _, counted in play([1.0], attacker, [1.0] * 5):
        assert counted[0] > 0.999


@settings(max_examples=200)
@given(
    st.lists(st.floats(1.0, 1.49), min_size=2, max_size=6),
    st.lists(st.one_of(positive, st.just(0.0)), max_size=40),
    st.booleans(),
)
def test_one_of_three_or_more_holds_nobody_back_and_counts_as_one_and_a_half(honest, attacker, has_history):
    first = [statistics.median(honest)] * 5 if has_history else []
    for largest, counted in play(honest, attacker, first):
        assert 1.5 * min(honest) - 1e-9 <= largest <= 1.5 * max(honest) * 1.5
        assert counted[:-1] == honest
        assert counted[-1] <= largest


@pytest.mark.parametrize("value", [64.0, -64.0])
def test_a_generalist_holds_no_number_beyond_the_limit_however_often_it_is_pushed(value):
    generalist, update = {"a": np.zeros(3, np.float32)}, {"a": np.full(3, value, np.float32)}
    for _ in range(3):
        mean = Mean()
        mean.add(update, ONE)
        generalist = mean.apply(generalist)
    assert generalist["a"].tolist() == [value] * 3


@pytest.mark.parametrize("counted", [-1, 11])
def test_a_counted_weight_is_a_part_of_the_weight(counted):
    with pytest.raises(ValueError, match=f"or {counted} of it"):
        Mean().add({"a": np.zeros(1, np.float32)}, 10, counted)


@pytest.mark.parametrize(("fleet", "share"), [(2, 0.81), (4, 0.58), (10, 0.31), (50, 0.076)])
def test_a_claim_of_endless_tokens_is_four_times_the_usual_one(fleet, share):
    rules = Rules(weights="tokens")
    claims = [Claim(ONE * 10240 // (1 << 20), 10240, 1.0)] * (fleet - 1) + [Claim(ONE, 1 << 40, 1.0)]
    weights = [weight for weight, _ in weigh_round(claims, [], rules)]
    assert weights[-1] / sum(weights) <= share
    assert weights[:-1] == [640] * (fleet - 1)
    assert weigh_round(claims, [], Rules())[0][0] == 640  # uniform rounds do not look at tokens
