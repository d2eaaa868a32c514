"""What seldom falls together, with a real coordinator: every number that was learned is counted once."""

import pytest

from comigs_edge.fleet import joining
from comigs_edge.fleet.outcome import Judgement
from comigs_edge.home.folder import Home
from tests.coordinator.rig import Coordinator, generalist
from tests.fleet.rig import BASE
from tests.fleet.test_exchange import begin, make, settled
from tests.fleet.test_ordinary_life import each, exchange_until_quiet, learn_away, newest, reopened


@pytest.fixture
def start(tmp_path):
    """A coordinator with these settings and so many devices, which have generalist 0."""
    running = []

    def begun(count, **flags):
        coordinator = Coordinator(tmp_path / "data", update_format="float32", **flags)
        running.append(coordinator)
        devices = make(coordinator, tmp_path, count)
        begin(coordinator, devices)
        return coordinator, devices

    yield begun
    for coordinator in running:
        coordinator.stop()


def worse(before, after):
    return Judgement(1.0, 9.0)


def better(before, after):
    return Judgement(9.0, 1.0)


def test_a_removed_device_is_not_waited_for_and_brings_again_what_was_dropped(start):
    coordinator, (first, removed, third) = start(3, min_devices=2, goal=3)
    for device in (first, removed):
        device.learn(1.0)
        assert device.exchange().receipts
    coordinator.ask("revoke", name=removed.books.membership.name)
    status = coordinator.ask("status")
    assert (status["updates"], status["open_round"]) == (1, 1)
    third.learn(1.0)
    assert third.exchange().receipts
    assert settled(coordinator)["newest_round"] == 1
    assert newest(coordinator) == pytest.approx(1, abs=0.01)
    mark, tokens = removed.books.mark, removed.books.standing.unsent_tokens
    joining.join(Home(removed.folder.root.parent), coordinator.invite(), None, generalist(base=BASE))
    reopened(removed)
    removed.local = removed.books.resume(removed.local, mark, tokens)
    for device in (first, third):
        device.exchange(tokens=0)
        device.learn(1.0)
        device.exchange()
    removed.exchange(tokens=0)
    removed.exchange(tokens=0)
    settled(coordinator)
    assert newest(coordinator) == pytest.approx(2, abs=0.01)
    assert [row["devices"] for row in coordinator.rounds()[1:3]] == [2, 3]


def test_an_update_that_is_under_way_while_the_fleet_turns_back_counts_once(start):
    coordinator, (sender, judge) = start(2, goal=1)
    sender.learn(1.0)
    sender.exchange()
    settled(coordinator)
    sender.exchange(tokens=0)
    real = sender.transport.commit

    def commit(wish):
        del sender.transport.commit
        assert judge.exchange(tokens=0, judge=worse).refused == 1
        coordinator.until(lambda status: status["newest_round"] == 2)
        return real(wish)

    sender.transport.commit = commit
    sender.learn(2.0)
    assert sender.exchange().receipts
    exchange_until_quiet(coordinator, sender, judge)
    assert coordinator.rounds()[2]["rolled_back_to"] == 0
    assert (newest(coordinator), sender.value, judge.value) == (pytest.approx(3, abs=0.01),) * 3


def test_what_was_learned_in_an_absence_of_25_generalists_comes_on_top(start):
    coordinator, (away, there) = start(2, goal=1)
    each(coordinator, away)
    learn_away(away, 2.0)
    for _ in range(25):
        each(coordinator, there)
    reopened(away)
    for _ in range(4):
        away.learn(1.0)
        away.exchange()
        settled(coordinator)
    exchange_until_quiet(coordinator, away, there)
    assert (newest(coordinator), away.value, there.value) == (pytest.approx(1 + 2 + 25 + 4, abs=0.02),) * 3


def test_a_device_that_refused_twice_and_then_accepts_has_and_brings_everything(start):
    coordinator, (judge, *others) = start(5, goal=1)
    for number, verdict in ((1, worse), (2, worse), (3, better)):
        each(coordinator, others[number % 4])
        judge.learn(1.0)
        outcome = judge.exchange(judge=verdict)
        settled(coordinator)
        assert (outcome.refused == number * 2 - 1) is (verdict is worse)
    exchange_until_quiet(coordinator, judge, *others)
    assert [row["rolled_back_to"] for row in coordinator.rounds() if row["rolled_back_to"] is not None] == []
    assert (newest(coordinator), judge.value, others[0].value) == (pytest.approx(6, abs=0.01),) * 3
