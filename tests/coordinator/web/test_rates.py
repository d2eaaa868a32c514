"""How often somebody may ask: a bucket worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.protocol.errors import Refused
from coordinator.web import rates
from coordinator.web.rates import Buckets


def test_a_burst_is_let_through_and_then_what_the_rate_allows():
    bucket = Buckets(rate=0.5, burst=3)
    for _ in range(3):
        bucket.take("a", 100.0)
    with pytest.raises(Refused, match="come again in 2 seconds") as refused:
        bucket.take("a", 100.0)
    assert (refused.value.status, refused.value.retry_after) == (429, 2.0)
    bucket.take("a", 102.0)
    with pytest.raises(Refused):
        bucket.take("a", 103.9)
    bucket.take("a", 104.0)
    bucket.take("b", 104.0)  # somebody else


def test_refusals_cost_nothing_and_a_long_rest_saves_no_more_than_a_burst():
    bucket = Buckets(rate=1.0, burst=2)
    for _ in range(2):
        bucket.take("a", 0.0)
    for _ in range(100):
        with pytest.raises(Refused):
            bucket.take("a", 0.5)
    bucket.take("a", 1.0)
    for _ in range(2):
        bucket.take("a", 1e6)
    with pytest.raises(Refused):
        bucket.take("a", 1e6)


def test_checking_takes_nothing():
    bucket = Buckets(rate=1.0, burst=1)
    for _ in range(10):
        bucket.check("a", 0.0)
    bucket.take("a", 0.0)
    with pytest.raises(Refused):
        bucket.check("a", 0.0)


def test_the_wait_is_a_second_at_least():
    bucket = Buckets(rate=100.0, burst=1)
    bucket.take("a", 0.0)
    with pytest.raises(Refused, match="in 1 seconds"):
        bucket.take("a", 0.0)


def test_keys_are_forgotten_from_the_one_that_was_used_the_longest_time_ago(monkeypatch):
    monkeypatch.setattr(rates, "MAX_KEYS", 3)
    bucket = Buckets(rate=0.001, burst=1)
    for key in "abc":
        bucket.take(key, 0.0)
    bucket.take("d", 1.0)
    assert len(bucket._left) == 3
    bucket.take("a", 1.0)  # forgotten, so it may ask again
    with pytest.raises(Refused):
        bucket.take("d", 1.0)


@given(st.lists(st.floats(0, 100), max_size=60).map(sorted))
def test_nobody_gets_more_than_a_burst_and_the_rate(times):
    bucket, granted = Buckets(rate=0.5, burst=4), []
    for now in times:
        try:
            bucket.take("a", now)
            granted.append(now)
        except Refused:
            pass
    for index, start in enumerate(granted):
        for count, end in enumerate(granted[index:], 1):
            assert count <= 4 + 0.5 * (end - start) + 1e-6
