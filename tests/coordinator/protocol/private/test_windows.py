"""The sum of a private window against a naive implementation, and what its masks show."""

import math
from collections import Counter
from itertools import chain, combinations

import numpy as np
import pytest

from coordinator.protocol import keys
from coordinator.protocol.aggregate import mean_change
from coordinator.protocol.private import masks, sharing, steps
from coordinator.protocol.private.cohort import Distrust, threshold
from coordinator.protocol.private.opening import Unopened, open_sum
from tests.coordinator.protocol.private import naive
from tests.coordinator.protocol.private.rig import HEAD, Round


def subsets(items):
    items = list(items)
    return chain.from_iterable(combinations(items, size) for size in range(len(items) + 1))


def test_the_modulus_is_prime_and_above_two_to_the_256():
    assert sharing.PRIME == naive.PRIME > 1 << 256
    odd, twos = sharing.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):  # Miller and Rabin
        value = pow(base, odd, sharing.PRIME)
        assert value in (1, sharing.PRIME - 1) or any(
            (value := value * value % sharing.PRIME) == sharing.PRIME - 1 for _ in range(twos)
        ), base


@pytest.mark.parametrize(("needed", "count"), [(1, 1), (2, 3), (3, 4), (5, 7), (34, 50)])
def test_any_shares_enough_give_the_secret_that_rational_numbers_give(needed, count):
    rng = np.random.default_rng(count)
    coefficients = [int.from_bytes(rng.bytes(32), "big") for _ in range(needed)]
    shares = sharing.split(coefficients, count)
    for chosen in [range(1, needed + 1), sorted(rng.permutation(np.arange(1, count + 1))[:needed].tolist())]:
        points = [(int(place), shares[place - 1]) for place in chosen]
        found = sharing.combine([value for _, value in points], sharing.weights([place for place, _ in points]))
        assert found == naive.interpolate(points) == coefficients[0]


def test_more_than_two_thirds_open_a_sum():
    assert [threshold(count) for count in (3, 4, 5, 6, 7, 10, 20, 50)] == [3, 3, 4, 5, 5, 7, 14, 34]
    for count in range(3, 65):
        assert 2 * threshold(count) > count + (count - 1) // 3  # two sums have an honest device in common


def test_no_step_of_any_window_needs_fewer_than_three_devices():
    for count in range(3, 10):
        for least in (0, 1, 3):
            assert Round(count, numbers=1, least=least).cohort.needed >= 3
    assert min(threshold(count) for count in range(3, 65)) == 3


def test_an_update_is_masked_as_the_naive_implementation_masks_it():
    window = Round(4)
    shared, party = sorted(window.by_id), window.parties[1]
    held = steps.secrets_of(party.seed, window.cohort.terms.window)
    cohort = window.cohort
    pairs = {}
    for other in shared:
        if other != party.id:
            theirs = steps.secrets_of(window.by_id[other].seed, cohort.terms.window).mask.public_key()
            words = ("mask", " ".join(shared), HEAD, *sorted((party.id, other)))
            pairs[other] = naive.hkdf(held.mask.exchange(theirs), cohort.context, *words)
    own = naive.hkdf(held.own, cohort.context, "own mask")
    numbers = [int(float(value) * 2**24) for value in party.update["a"]]
    assert window.masked(party, shared).tolist() == naive.masked(numbers, own, pairs, party.id)


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_every_set_of_dropouts_gives_the_plain_sum_or_no_share(count):
    window, tried, opened = Round(count, numbers=8), 0, 0
    for shared in subsets(window.by_id):
        if len(shared) < window.cohort.needed:
            continue
        masked = {each: window.masked(window.by_id[each], shared) for each in shared}
        for senders in subsets(shared):
            what = steps.confirmed(window.cohort, shared, senders, HEAD)
            for answering in subsets(senders):
                tried += 1
                signed = window.confirmations(what, answering)
                if len(answering) < window.cohort.threshold:
                    for device in answering:
                        with pytest.raises(Distrust):
                            window.answer(device, what, signed)
                    continue
                answers = {device: window.answer(device, what, signed) for device in answering}
                total = open_sum(window.cohort, what, answers, [masked[each] for each in senders])
                plain = naive.plain_sum([masks.to_ring(window.by_id[each].update).tolist() for each in senders])
                assert total.tolist() == plain
                opened += 1
    assert opened
    assert tried > opened


def test_a_mean_has_the_bits_of_the_plain_mean_with_equal_weights():
    shapes = {"b": (3, 40), "a": (512,)}
    for count in (3, 7, 64):
        rng = np.random.default_rng(count)
        updates = [
            {name: np.clip(rng.standard_normal(shape) * 10.0 ** rng.integers(-7, 1), -1, 1).astype(np.float16)
             for name, shape in shapes.items()} for _ in range(count)
        ]  # fmt: skip
        for extreme in updates:  # the largest, the smallest, and minus zero
            extreme["a"][:4] = (1, -1, 2**-24, -0.0)
        total = sum((masks.to_ring(update) for update in updates), np.zeros(632, np.uint32))
        found, _ = masks.mean_change(total, count, shapes, 1e6)
        before = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        plain = mean_change(before, [({name: each.astype(np.float32) for name, each in update.items()}, 1 << 16)
                                     for update in updates])  # fmt: skip
        for name in shapes:
            assert np.array_equal(found[name] + np.float16(0), plain[name] + np.float16(0))
            assert np.array_equal(found[name].view(np.uint16), plain[name].view(np.uint16))


@pytest.mark.parametrize("value", [1.001, -2.0, np.inf, np.nan])
def test_a_number_beyond_one_is_not_masked(value):
    with pytest.raises(ValueError, match="up to 1"):
        masks.to_ring({"a": np.array([0, value], np.float16)})


def test_a_mean_beyond_the_bound_is_scaled_down_to_it():
    total = np.full(100, 3 << 24, np.int32).view(np.uint32)
    change, norm = masks.mean_change(total, 3, {"a": (100,)}, 5.0)
    assert norm == 10
    assert np.linalg.norm(change["a"].astype(float)) == pytest.approx(5, rel=1e-3)


def uniformity(counts, kinds):
    """Chi-square of counts that should be equal, as standard deviations from what is expected."""
    total = sum(counts.values())
    expected = total / kinds
    square = sum((counts[kind] - expected) ** 2 / expected for kind in range(kinds))
    return (square - (kinds - 1)) / math.sqrt(2 * (kinds - 1))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_the_coordinator_sees_of_an_update_is_uniform_in_every_byte(value):
    window = Round(3, numbers=1 << 16)
    party = window.parties[0]
    party.update = {"a": np.full(1 << 16, value, np.float16)}
    seen = window.masked(party, sorted(window.by_id)).view(np.uint8).reshape(-1, 4)
    for byte in range(4):
        assert abs(uniformity(Counter(seen[:, byte].tolist()), 256)) < 5


def test_the_sum_without_one_mask_is_uniform_too():
    """Of three devices that send zeros: whoever lacks one device's own mask sees nothing."""
    window = Round(3, numbers=1 << 16)
    for party in window.parties:
        party.update = {"a": np.zeros(1 << 16, np.float16)}
    shared = sorted(window.by_id)
    total = sum((window.masked(party, shared) for party in window.parties), np.zeros(1 << 16, np.uint32))
    assert abs(uniformity(Counter(total.view(np.uint8).tolist()), 256)) < 5


@pytest.mark.parametrize("kind", ["own", "keys"])
def test_a_wrong_share_opens_no_wrong_sum(kind):
    window = Round(5, numbers=8)  # four answers open it
    shared = sorted(window.by_id)
    senders = shared if kind == "own" else shared[:4]
    what = steps.confirmed(window.cohort, shared, senders, HEAD)
    masked = [window.masked(window.by_id[each], shared) for each in senders]
    signed = window.confirmations(what, senders)
    answers = {device: window.answer(device, what, signed) for device in senders}
    spoiled = getattr(answers[senders[0]], kind)
    spoiled[shared[-1]] = f"{1:066x}"
    if len(answers) == window.cohort.threshold:
        with pytest.raises(Unopened):
            open_sum(window.cohort, what, answers, masked)
    else:
        plain = naive.plain_sum([masks.to_ring(window.by_id[each].update).tolist() for each in senders])
        assert open_sum(window.cohort, what, answers, masked).tolist() == plain


def test_devices_that_know_another_generalist_have_another_mask():
    window = Round(3, numbers=64)
    shared = sorted(window.by_id)
    what = steps.confirmed(window.cohort, shared, shared, HEAD)
    signed = window.confirmations(what, shared)
    answers = {device: window.answer(device, what, signed) for device in shared}
    heads = [HEAD, HEAD, "cd" * 32]
    masked = [window.masked(window.by_id[each], shared, head) for each, head in zip(shared, heads, strict=True)]
    plain = naive.plain_sum([masks.to_ring(window.by_id[each].update).tolist() for each in shared])
    found = open_sum(window.cohort, what, answers, masked).tolist()
    assert sum(a == b for a, b in zip(found, plain, strict=True)) < 3


def test_a_step_that_is_done_again_gives_the_same_bytes():
    window = Round(4)
    party = window.parties[0]
    assert steps.make_shares(party.seed, window.cohort, party.id).boxes == window.boxes[party.id]
    again = steps.make_keys(party.seed, window.cohort.terms.window, party.identity)
    assert again == party.keys
    assert keys.device_id(window.cohort.devices[party.id].public_key) == party.id
