"""In a fleet, out of it and back: what counted and what did not, and who is who; with a real coordinator."""

import pytest

from comigs_edge.fleet import joining, rounds
from comigs_edge.fleet.client import RemoteRefused
from comigs_edge.home.folder import Home
from tests.coordinator.rig import Coordinator, generalist
from tests.fleet.rig import BASE, Device
from tests.fleet.test_exchange import settled
from tests.fleet.test_ordinary_life import newest, reopened


@pytest.fixture
def coordinator(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "PATIENCE", 0.5)
    running = Coordinator(tmp_path / "data", update_format="float32", local_steps=2)
    yield running
    running.stop()


def member(coordinator, root, name):
    """With generalist 0."""
    device = Device(root).join_coordinator(coordinator.invite(name))
    device.exchange(tokens=0)
    return device


def join_again(coordinator, device, name=None):
    mark = device.books.mark
    joining.join(Home(device.folder.root.parent), coordinator.invite(name), None, generalist(base=BASE))
    reopened(device)
    device.local = device.books.resume(device.local, mark, device.books.standing.unsent_tokens)


def counted(coordinator):
    return sum(row["tokens"] or 0 for row in coordinator.rounds())


def test_what_a_removal_dropped_counts_once_when_the_device_is_back(coordinator, tmp_path):
    first, second = (member(coordinator, tmp_path / name, name) for name in ("first", "second"))
    second.exchange(tokens=0)
    settled(coordinator)
    for device in (first, second):
        device.exchange(tokens=0)
    first.learn(2.0)
    assert first.exchange(tokens=100).receipts
    coordinator.ask("revoke", name="first")
    with pytest.raises(RemoteRefused, match="was removed from the fleet"):
        first.exchange(tokens=0)
    join_again(coordinator, first)
    assert first.books.standing.unsent_tokens == 100
    first.learn(4.0)
    first.exchange(tokens=10)
    second.exchange(tokens=0)
    coordinator.ask("revoke", name="second")
    settled(coordinator)
    first.exchange(tokens=0)
    assert (newest(coordinator), first.value, counted(coordinator)) == (6.0, 6.0, 110)
