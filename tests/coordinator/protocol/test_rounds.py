"""When a round closes and what an update counts, as tables."""

import math
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.protocol import rounds
from coordinator.protocol.rounds import ONE, Rules, goal, is_complete, quorum, staleness, weight

RULES = Rules(goal=0, deadline_seconds=100, min_fraction=0.5)


@pytest.mark.parametrize(
    ("number", "updates", "active", "seconds", "closes"),
    [
        (0, 1, 5, 0, True),  # the first generalist is one device's
        (0, 0, 5, 1e6, False),
        (1, 1, 1, 0, True),  # one device alone is a working fleet
        (3, 4, 5, 0, False),
        (3, 5, 5, 0, True),  # goal: all active ones
        (3, 5, 4, 0, True),  # one that was away came, too
        (3, 2, 5, 1e6, False),  # the deadline without the quorum
        (3, 3, 5, 99.9, False),  # the quorum before the deadline
        (3, 3, 5, 100, True),
        (3, 2, 4, 100, True),
        (3, 1, 0, 0, True),  # nobody was heard of for days
    ],
)
def test_a_round_closes_at_its_goal_or_at_its_deadline_with_a_quorum(number, updates, active, seconds, closes):
    assert is_complete(RULES, number, updates, active, seconds) is closes


@pytest.mark.parametrize(("number", "updates", "active", "closes"), [
    (0, 1, 1, True),  # the first generalist says nothing of any text
    (1, 2, 2, False), (1, 2, 8, False), (1, 2, 0, False), (1, 3, 3, True), (1, 3, 2, True), (1, 3, 8, False), (1, 4, 8, True),
])  # fmt: skip
def test_no_round_but_the_first_closes_with_fewer_than_the_least_number_asked_for(number, updates, active, closes):
    rules = Rules(min_devices=3, deadline_seconds=100, min_fraction=0.5)
    assert is_complete(rules, number, updates, active, 1e6) is closes
    assert is_complete(Rules(min_devices=3, goal=2), number, 2, 5, 1e6) is (number == 0)


def test_a_goal_beyond_the_active_devices_is_what_there_are():
    assert goal(Rules(goal=3), 1, 50) == 3
    assert goal(Rules(goal=30), 1, 4) == 4
    assert goal(Rules(), 1, 5000) == rounds.MAX_UPDATES == 1024  # what sums exactly


@given(st.integers(1, 100), st.integers(0, 2000))
def test_the_quorum_is_the_fraction_rounded_up(percent, active):
    expected = max(1, math.ceil(Fraction(percent, 100) * active))
    assert quorum(Rules(min_fraction=percent / 100), active) == expected


@given(st.integers(0, 1024), st.integers(0, 100), st.integers(0, 100), st.floats(0, 1e6), st.integers(0, 1024))
def test_one_more_update_or_a_later_hour_never_opens_a_round_again(goal, number, active, seconds, updates):
    rules = Rules(goal=goal)
    if is_complete(rules, number, updates, active, seconds):
        assert is_complete(rules, number, updates + 1, active, seconds)
        assert is_complete(rules, number, updates, active, seconds + 1)


@pytest.mark.parametrize(("stale", "share"), [(0, 1), (1, 0.7071), (3, 0.5), (8, 1 / 3), (20, 0.2182), (10**6, 0.001)])
def test_an_update_counts_one_over_the_root_of_one_plus_its_staleness(stale, share):
    assert weight(Rules(), stale, 1000) / ONE == pytest.approx(share, abs=1e-4)


def test_by_tokens_twice_the_tokens_are_twice_the_weight_up_to_a_cap():
    rules = Rules(weights="tokens")
    assert weight(rules, 0, 1 << 19) * 2 == weight(rules, 0, 1 << 20) == weight(rules, 0, 1 << 50) == ONE
    assert weight(rules, 3, 1 << 20) * 2 == ONE
    assert weight(rules, 0, 0) == weight(rules, 10**6, 1) == 1  # the least there is, never nothing
    assert weight(Rules(), 0, 1) == weight(Rules(), 0, 1 << 50) == ONE  # uniform does not look at tokens


@given(st.sampled_from(get_args(rounds.Weights)), st.integers(0, 10**6), st.integers(0, 2**53))
def test_every_weight_is_one_that_sums_take(weights, stale, tokens):
    assert 1 <= weight(Rules(weights=weights), stale, tokens) <= ONE


def test_staleness_is_never_negative():
    assert [staleness(5, 5), staleness(5, 2), staleness(-1, -1), staleness(3, 7)] == [0, 3, 0, 0]


def test_a_fleet_of_any_size_asks_20_times_a_second_at_most():
    for active in (1, 50, 100, 2000, 100_000):
        assert active / rounds.next_poll_seconds(active) <= 20
