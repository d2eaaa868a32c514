"""The mean of updates: against fractions worked out exactly, in any order, at the largest numbers."""

from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.protocol import rounds
from coordinator.protocol.aggregate import MAX_ABSOLUTE, PIECE, SCALE, Mean, aggregate


def one(*values):
    return {"a": np.array(values, np.float32)}


def exact_mean(updates):
    """The weighted mean of the fixed-point numbers, as a fraction for each place."""
    total = sum(weight for _, weight in updates)
    columns = zip(*(update["a"].tolist() for update, _ in updates), strict=True)
    return [
        sum(round(Fraction(x) * SCALE) * weight for x, (_, weight) in zip(column, updates, strict=True)) / Fraction(SCALE * total)
        for column in columns
    ]


def test_the_mean_weighs_devices_as_worked_by_hand():
    found = aggregate(one(10.0, 0.0), [(one(1.0, -2.0), 100), (one(4.0, 2.0), 300)])
    np.testing.assert_array_equal(found["a"], np.array([13.25, 1.0], np.float32))  # 10 + (100 + 1200) / 400


def test_a_number_counts_as_the_nearest_step_and_a_half_as_the_even_one():
    steps = np.array([0.4, 0.6, -0.4, -0.6, 0.5, 1.5, -0.5], np.float32)
    found = aggregate({"a": np.zeros(7, np.float32)}, [({"a": steps * np.float32(2.0**-28)}, 3)])["a"]
    assert (found * 2.0**28).tolist() == [0, 1, 0, -1, 0, 2, 0]


def test_one_device_alone_is_its_own_mean():
    update = one(0.5, -0.25, 63.0)
    for weight in (1, 77, rounds.ONE):
        np.testing.assert_array_equal(aggregate(one(0, 0, 0), [(update, weight)])["a"], update["a"])


def test_equal_weights_of_any_size_are_the_same_mean():
    updates = [one(*np.random.default_rng(seed).standard_normal(50)) for seed in range(5)]
    small, large = ([(update, weight) for update in updates] for weight in (1, rounds.ONE))
    np.testing.assert_array_equal(aggregate(one(*[0] * 50), small)["a"], aggregate(one(*[0] * 50), large)["a"])


number = st.floats(-MAX_ABSOLUTE, MAX_ABSOLUTE, width=32)
weighted = st.tuples(st.lists(number, min_size=3, max_size=3), st.integers(1, rounds.ONE))


@settings(max_examples=100, deadline=None)
@given(st.lists(weighted, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_any_order_gives_the_same_bits_and_they_are_those_of_exact_fractions(rows, random):
    updates = [(one(*values), weight) for values, weight in rows]
    found = aggregate(one(0, 0, 0), updates)["a"]
    random.shuffle(updates)
    np.testing.assert_array_equal(aggregate(one(0, 0, 0), updates)["a"].view(np.uint32), found.view(np.uint32))
    expected = np.array([float(value) for value in exact_mean(updates)])
    np.testing.assert_allclose(found, expected, rtol=2**-23, atol=1e-40)


def test_a_crash_in_between_and_a_second_start_give_the_same_bits():
    updates = [(one(*np.random.default_rng(seed).standard_normal(100)), 1 + seed) for seed in range(20)]
    whole = aggregate(one(*[1] * 100), updates)["a"]
    interrupted = Mean()
    for update, weight in updates[:7]:
        interrupted.add(update, weight)  # and is lost
    np.testing.assert_array_equal(aggregate(one(*[1] * 100), updates[::-1])["a"], whole)


def test_the_sum_of_the_largest_fleet_fits_into_64_bits():
    largest = round(MAX_ABSOLUTE * SCALE) * rounds.ONE * rounds.MAX_UPDATES  # python's own integers, which have no bound
    assert largest == 2**60 < 2**63
    mean = Mean()
    for _ in range(rounds.MAX_UPDATES):
        mean.add(one(MAX_ABSOLUTE, -MAX_ABSOLUTE), rounds.ONE)
    assert mean._sums["a"].tolist() == [largest, -largest]
    np.testing.assert_array_equal(mean.apply(one(0, 0))["a"], np.array([64, -64], np.float32))


@pytest.mark.parametrize("value", [np.nextafter(np.float32(64), np.float32(65)), np.inf, -np.inf, np.nan])
def test_numbers_that_could_overflow_are_refused(value):
    with pytest.raises(ValueError, match="beyond 64"):
        Mean().add(one(0, value), 1)


@pytest.mark.parametrize("weight", [0, -1, rounds.ONE + 1])
def test_weights_that_could_overflow_are_refused(weight):
    with pytest.raises(ValueError, match=f"weight of {weight}"):
        Mean().add(one(0), weight)


def test_each_tensor_is_divided_by_the_weight_of_those_who_sent_it():
    before = {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32), "c": np.full(1, 7, np.float32)}
    first, second = {"a": np.full(1, 2, np.float32)}, {"a": np.full(1, 4, np.float32), "b": np.full(1, 9, np.float32)}
    found = aggregate(before, [(first, 1), (second, 3)])
    assert [found[name].item() for name in "abc"] == [3.5, 9.0, 7.0]  # (2 + 3 * 4) / 4; only one sent b; nobody sent c


def test_an_array_of_several_pieces_is_averaged_to_its_end():
    values = np.arange(2 * PIECE + 3, dtype=np.float32) % 60
    found = aggregate({"a": np.zeros((2 * PIECE + 3,), np.float32)}, [({"a": values}, 5), ({"a": -values}, 5)])
    assert not found["a"].any()
    found = aggregate({"a": np.zeros((1, 2 * PIECE + 3), np.float32)}, [({"a": values[None]}, 5)])
    np.testing.assert_array_equal(found["a"], values[None])


# A mean of A and a mean of B are not a mean of B A -------------------------------------------------------------------


def product(arrays):
    return arrays["b"].astype(np.float64) @ arrays["a"].astype(np.float64)


def next_product(before, changes):
    return product(aggregate(before, [(change, rounds.ONE) for change in changes]))


def mean_product(before, changes):
    after = [{name: array + change.get(name, 0) for name, array in before.items()} for change in changes]
    return np.mean([product(arrays) for arrays in after], axis=0)


def test_separate_averaging_is_wrong_in_the_smallest_case_by_half():
    before = {"a": np.zeros((1, 1), np.float32), "b": np.zeros((1, 1), np.float32)}
    changes = [{"a": np.full((1, 1), x, np.float32), "b": np.full((1, 1), x, np.float32)} for x in (1.0, 0.0)]
    assert mean_product(before, changes).item() == 0.5  # (1 * 1 + 0 * 0) / 2
    assert next_product(before, changes).item() == 0.25  # mean of A 0.5 times mean of B 0.5


def test_freeze_a_and_alternate_average_the_products_exactly_and_separate_does_not():
    rng = np.random.default_rng(0)
    names = {"x.lora_a": "a", "x.lora_b": "b"}
    before = {"a": rng.standard_normal((4, 16)).astype(np.float32), "b": rng.standard_normal((16, 4)).astype(np.float32)}

    def changes(averaging, number):
        sent = [names[name] for name in rounds.trained_names(names, averaging, number)]
        return [{n: rng.standard_normal(before[n].shape).astype(np.float32) for n in sent} for _ in range(5)]

    def error(averaging, number):
        given_changes = changes(averaging, number)
        wanted = mean_product(before, given_changes)
        return np.abs(next_product(before, given_changes) - wanted).max() / np.abs(wanted).max()

    assert error("separate", 1) > 0.1  # measured: a quarter and more
    for averaging, number in (("freeze-a", 1), ("freeze-a", 2), ("alternate", 1), ("alternate", 2)):
        assert error(averaging, number) < 1e-6, (averaging, number)


def test_alternate_trains_each_side_in_turn_and_freeze_a_never_the_in_side():
    names = ["x.lora_a", "x.lora_b", "y.ffn_gate.weight", "y.ffn_up.weight", "y.ffn_down.weight"]
    inner, outer = ["x.lora_a", "y.ffn_gate.weight", "y.ffn_up.weight"], ["x.lora_b", "y.ffn_down.weight"]
    assert rounds.trained_names(names, "alternate", 2) == rounds.trained_names(names, "alternate", 4) == inner
    assert rounds.trained_names(names, "alternate", 1) == rounds.trained_names(names, "freeze-a", 7) == outer
    for averaging in get_args(rounds.Averaging):
        assert rounds.trained_names(names, averaging, 0) == sorted(names)
