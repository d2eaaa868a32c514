"""When a device asks its fleet again, and what it says of itself only where its owner wishes it."""

import math

import pytest

from comigs_edge.fleet import exchange as module
from comigs_edge.fleet.exchange import MAX_PAUSE, Exchange
from comigs_edge.fleet.outcome import Judgement
from tests.coordinator.rig import SHAPES, arrays
from tests.fleet.rig import NAME, Device, FolderFleet
from tests.fleet.test_books import offline


@pytest.fixture
def clock(device, monkeypatch):
    """The time, which the test sets; of a random pause the longest is taken."""
    now = [0.0]
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    device._exchange = Exchange(device.books, device.transport, lambda: now[0])
    return now


def seconds_until_due(device, clock):
    """How long the device leaves its fleet in peace."""
    start, waited = clock[0], 0
    while not device._exchange.is_due():
        waited += 1
        clock[0] = start + waited
    clock[0] = start
    return waited


def test_a_fleet_that_is_away_is_asked_ever_more_seldom_and_at_once_when_it_is_back(device, clock, fleet):
    there, device.transport.exchange = device.transport.exchange, offline
    waits = []
    for _ in range(10):
        device.learn(1.0)
        device.exchange()
        waits.append(seconds_until_due(device, clock))
    assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, MAX_PAUSE, MAX_PAUSE]
    device.transport.exchange = there
    device.exchange(tokens=0)
    device.transport.exchange = offline
    device.exchange(tokens=0)
    assert seconds_until_due(device, clock) == 10


def test_a_device_whose_update_is_in_comes_again_when_the_fleet_asks_it_to(device, clock, fleet):
    device.learn(1.0)
    device.exchange()
    assert seconds_until_due(device, clock) == 5  # as this fleet says
    fleet.close()
    device.exchange(tokens=0)
    assert device._exchange.is_due()  # the next round is open


@pytest.mark.parametrize("reports", [False, True])
def test_losses_leave_the_device_only_where_its_owner_says_so(device, fleet, reports):
    device.books.reports_loss = reports
    device.learn(1.0)
    device._exchange.run(device.local, 100, None, 3.5)
    assert [update.validation_loss for update in fleet.updates.values()] == [3.5 if reports else None]
    fleet.close()
    device._exchange.run(device.local, 0, lambda before, after: Judgement(1.0, 9.0))
    (refusal,) = fleet.refusals
    assert (refusal.loss_before, refusal.loss_after) == ((1.0, 9.0) if reports else (None, None))


def test_a_generalist_within_the_gate_is_taken_over_and_one_beyond_it_is_not(device, fleet):
    for after, is_taken in ((1.09, True), (1.11, False)):
        device.learn(1.0)
        device.exchange()
        fleet.close()
        outcome = device.exchange(tokens=0, judge=lambda before, new, after=after: Judgement(1.0, after))
        assert (outcome.taken_over is not None) == is_taken


def test_of_an_update_that_is_cut_to_the_bound_the_tokens_are_cut_with_it(device, fleet):
    fleet.norm_limit = math.sqrt(sum(math.prod(shape) for shape in SHAPES.values()))
    device.learn(2.5)
    brought = []
    for tokens in (1000, 0, 0):
        device.exchange(tokens=tokens)
        brought += [update.tokens for update in fleet.updates.values()]
        fleet.close()
        device.exchange(tokens=0)
    assert brought[0] == pytest.approx(400, abs=2)  # 1 of 2.5
    assert sum(brought) == 1000


def test_where_sides_are_averaged_in_turn_the_other_one_is_frozen(tmp_path):
    fleet = FolderFleet(tmp_path / "turns", averaging="alternate")
    device = Device(tmp_path / "home").join_folder(fleet, "device")
    sides = []
    for _ in range(4):
        device.learn(1.0)
        device.exchange()
        fleet.close()
        device.exchange(tokens=0)
        sides.append({name.rsplit(".", 1)[1] for name in device.books.frozen()})
    assert sides == [{"lora_a"}, {"lora_b"}, {"lora_a"}, {"lora_b"}]  # the out side in odd rounds, which come first


def test_an_update_that_may_have_arrived_is_not_sealed_anew_while_the_fleet_is_away(device, fleet):
    device.learn(2.0)
    device.exchange()
    tried = fleet.updates.pop("device")
    there, device.transport.exchange = device.transport.exchange, offline
    device.learn(1.0)
    device.exchange()
    device.transport.exchange = there
    device.exchange(tokens=0)
    assert fleet.updates["device"].id == tried.id


def test_once_the_first_generalist_has_arrived_what_was_learned_is_on_top_of_it(tmp_path, fleet):
    device = Device(tmp_path / "home")
    device.initial = device.local = arrays(0.5)
    device.join_folder(fleet, "device", has_receipts=True)
    device.learn(1.0)
    assert device.exchange().receipts
    assert device.reference == 0.5
    assert float(device.books.standing.on_top[NAME][0, 0]) == 1.0
