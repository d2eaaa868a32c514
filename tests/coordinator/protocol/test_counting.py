"""What counts and what the next generalist is, against numbers that were worked out by hand."""

import numpy as np
import pytest

from coordinator.protocol import compress, counting, wire
from coordinator.protocol.counting import Standing, check_commit, next_generalist, weigh
from coordinator.protocol.errors import Refused, WireError
from coordinator.protocol.messages import Commit
from coordinator.protocol.rounds import ONE, TOKEN_CAP, Rules, generalist_before, refusal_quorum

SHAPES = {"x.lora_a": (2, 3), "x.lora_b": (3, 2)}
RULES = Rules(max_staleness=3)


def wish(**changes):
    return Commit(**{"sha256": "ab" * 32, "trained_from": 6, "tokens": 10, "expected_round": 7, **changes})


@pytest.mark.parametrize(
    ("standing", "changes", "code"),
    [
        (Standing(7, 6, False), {}, None),
        (Standing(7, 6, False), {"trained_from": 3}, None),  # three behind
        (Standing(7, 6, False), {"trained_from": 2}, "too_stale"),
        (Standing(7, 6, True), {}, "already_counted"),
        (Standing(8, 7, True), {}, "stale_round"),  # this goes first: the device asks again for the round that is open
        (Standing(7, 5, False), {}, "wrong_generalist"),  # round 6 is closed and its generalist not made yet
        (Standing(7, 6, False), {"trained_from": -1}, "wrong_generalist"),
        (Standing(0, -1, False), {"expected_round": 0, "trained_from": -1}, None),
        (Standing(0, -1, False), {"expected_round": 0, "trained_from": 0}, "wrong_generalist"),
        (Standing(7, 6, False), {"tokens": 2**53 - 1}, None),
        (Standing(7, 6, False), {"tokens": 2**53}, "bad_commit"),
        (Standing(7, 6, False), {"validation_loss": float("nan")}, "bad_commit"),
    ],
)
def test_a_commit_counts_if_it_fits_to_where_the_fleet_stands(standing, changes, code):
    if code is None:
        check_commit(wish(**changes), standing, RULES, "kitchen")
        return
    with pytest.raises(Refused) as error:
        check_commit(wish(**changes), standing, RULES, "kitchen")
    assert error.value.code == code


@pytest.mark.parametrize(
    ("changes", "newest", "weights", "expected"),
    [
        ({}, 6, "uniform", ONE),
        ({"trained_from": 3}, 6, "uniform", ONE // 2),  # 1 / sqrt(1 + 3)
        ({"trained_from": -1}, -1, "uniform", ONE),
        ({"tokens": TOKEN_CAP // 4}, 6, "tokens", ONE // 4),
        ({"tokens": TOKEN_CAP // 4, "trained_from": 3}, 6, "tokens", ONE // 8),
        ({"tokens": 10 * TOKEN_CAP}, 6, "tokens", ONE),
        ({"tokens": 0}, 6, "tokens", 1),
    ],
)
def test_an_update_weighs_what_its_age_and_tokens_say(changes, newest, weights, expected):
    assert weigh(wish(**changes), newest, Rules(weights=weights)) == expected


def full(value, names=SHAPES):
    return {name: np.full(SHAPES[name], value, np.float32) for name in names}


def values(tensors):
    return {name: np.unique(array).tolist() for tensor in tensors for name, array in tensor.items()}


def test_the_next_generalist_is_the_one_before_and_the_weighted_mean_of_the_changes():
    only_b = full(8.0, ["x.lora_b"])
    tensors = list(next_generalist(SHAPES, full(10.0), [(full(1.0), 100, 100), (full(4.0), 300, 300), (only_b, 400, 400)]))
    # (100 * 1 + 300 * 4) / 400 = 3.25 and (100 + 1200 + 400 * 8) / 800 = 5.625
    assert values(tensors) == {"x.lora_a": [13.25], "x.lora_b": [15.625]}
    assert [list(tensor) for tensor in tensors] == [["x.lora_a"], ["x.lora_b"]]


def test_the_first_generalist_is_the_first_update_itself():
    assert values(next_generalist(SHAPES, None, [(full(0.75), ONE, ONE)])) == {"x.lora_a": [0.75], "x.lora_b": [0.75]}


def test_a_tensor_that_nobody_sent_stays_as_it_was():
    assert values(next_generalist(SHAPES, full(2.0), [])) == {"x.lora_a": [2.0], "x.lora_b": [2.0]}


def test_an_update_of_one_side_has_the_shapes_of_that_side():
    assert counting.update_shapes(SHAPES, "separate", 4) == SHAPES
    assert counting.update_shapes(SHAPES, "freeze-a", 4) == {"x.lora_b": (3, 2)}
    assert counting.update_shapes(SHAPES, "alternate", 5) == {"x.lora_a": (2, 3)}  # for round 6
    assert counting.update_shapes(SHAPES, "freeze-a", -1) == SHAPES


@pytest.mark.parametrize(("value", "is_good"), [(64.0, True), (-64.0, True), (64.0625, False), (np.nan, False)])
def test_an_update_is_checked_to_its_last_number(value, is_good):
    arrays = full(0.0)
    arrays["x.lora_b"][-1, -1] = value
    data, table = wire.encode(compress.pack(arrays, "float16")), compress.table(SHAPES, "float16")
    if is_good:
        counting.check_update(data, table, "float16")
    else:
        with pytest.raises(WireError, match=r"x\.lora_b"):
            counting.check_update(data, table, "float16")


@pytest.mark.parametrize(("active", "needed"), [(0, 0), (1, 1), (2, 1), (3, 2), (6, 2), (7, 3), (50, 17)])
def test_a_third_of_the_fleet_and_at_least_two_of_three_turn_back(active, needed):
    assert refusal_quorum(active) == needed


@pytest.mark.parametrize(
    ("number", "again", "before"),
    [
        (2, {}, 1),
        (3, {3: 1}, 0),  # 0 1 2 1: not 2, which was refused
        (5, {3: 1}, 4),
        (4, {3: 1}, 1),  # 0 1 2 1 4
        (4, {3: 1, 4: 0}, -1),  # nothing is before the first
    ],
)
def test_a_generalist_that_was_refused_does_not_come_again(number, again, before):
    assert generalist_before(number, again) == before
