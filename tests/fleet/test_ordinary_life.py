"""What happens to a fleet in a year, with a real coordinator: restored, moved, away, damaged; every number is counted once.

A round is one update, so the newest generalist is the sum of all that was learned and counted.
"""

import shutil
import subprocess

import pytest

from comigs_edge.fleet import joining
from comigs_edge.fleet.chain import ForkedChain
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.http import HTTPTransport
from comigs_edge.home.folder import Home
from coordinator.protocol import wire
from tests.coordinator.proxy import Faults, Proxy
from tests.coordinator.rig import Coordinator, generalist
from tests.fleet.rig import BASE, NAME, Device
from tests.fleet.test_exchange import Broken, begin, make, settled


@pytest.fixture
def coordinator(tmp_path):
    """Each update closes a round."""
    running = Coordinator(tmp_path / "data", update_format="float32", goal=1)
    yield running
    if running.process.poll() is None:
        running.stop()


def newest(coordinator):
    sha256 = settled(coordinator) and coordinator.rounds()[-2]["sha256"]
    return float(wire.decode((coordinator.data / "payloads" / sha256).read_bytes(), "a generalist")[NAME][0, 0])


def each(coordinator, *devices, value=1.0):
    """One round of each device, which takes over what it made."""
    for device in devices:
        device.learn(value)
        device.exchange()
        settled(coordinator)
        device.exchange(tokens=0)


def exchange_until_quiet(coordinator, *devices):
    """Until all have brought and taken over everything; returns how often each went back with its coordinator."""
    went_back = [[] for _ in devices]
    for _ in range(10):
        for device, found in zip(devices, went_back, strict=True):
            outcome = device.exchange(tokens=0)
            found += [outcome.restored_to] if outcome.restored_to is not None else []
            settled(coordinator)
    return went_back


def learn_away(device, value):
    """What is learned waits."""
    session, device.transport._session = device.transport._session, Broken()
    device.learn(value)
    assert device.exchange().waits
    device.transport._session = session


def reopened(device):
    """As in a new process, with what is on its disk."""
    member = device.folder.membership()
    device.transport = HTTPTransport(member.address, bytes.fromhex(member.pin), device.folder.key(), member.device, 2.0)
    device.open()
    return device


def restore(coordinator, tar):
    """From a backup, as its command says."""
    coordinator.stop()
    shutil.rmtree(coordinator.data)
    coordinator.data.mkdir(mode=0o700)
    subprocess.run(["tar", "-xf", tar, "-C", coordinator.data], check=True)
    coordinator.restart()


def put_back(coordinator, copy):
    """The folder as it was, by hand: nobody tells the devices."""
    coordinator.stop()
    shutil.rmtree(coordinator.data)
    shutil.copytree(copy, coordinator.data)
    coordinator.restart()


def copied(coordinator, target):
    coordinator.stop()
    shutil.copytree(coordinator.data, target, ignore=shutil.ignore_patterns("admin.sock"))
    coordinator.restart()
    return target


@pytest.mark.parametrize("way", ["backup", "by hand"])
def test_devices_go_on_with_a_restored_coordinator_and_lose_nothing(coordinator, tmp_path, way):
    devices = head, behind, brought, waiting = make(coordinator, tmp_path, 4)
    begin(coordinator, devices)
    each(coordinator, *devices)
    if way == "backup":
        coordinator.command("backup", str(tmp_path / "x.tar"))
    else:
        copied(coordinator, tmp_path / "copy")
    for device in (head, waiting):
        each(coordinator, device)
    brought.learn(1.0)
    brought.exchange()  # which took over nothing since
    settled(coordinator)
    learn_away(waiting, 1.0)
    learned = 4 + 4
    for _ in range(2):
        if way == "backup":
            restore(coordinator, tmp_path / "x.tar")
        else:
            put_back(coordinator, tmp_path / "copy")
            coordinator.command("restored")
        went_back = exchange_until_quiet(coordinator, *devices)
        assert [len(times) <= 1 for times in went_back] == [True] * 4
        assert len(went_back[0]) == 1
        assert newest(coordinator) == pytest.approx(learned, abs=0.01)
        assert [device.value for device in devices] == [pytest.approx(learned, abs=0.01)] * 4
        for device in devices:
            reopened(device)
        each(coordinator, head)
        behind.learn(1.0)
        behind.exchange()
        settled(coordinator)
        learned += 2


def test_without_a_note_each_device_refuses_and_drops_nothing(coordinator, tmp_path):
    head, waiting = devices = make(coordinator, tmp_path, 2)
    begin(coordinator, devices)
    each(coordinator, *devices)
    copied(coordinator, tmp_path / "copy")
    each(coordinator, head, waiting)
    learn_away(waiting, 1.0)
    put_back(coordinator, tmp_path / "copy")
    for device in devices:
        value = device.value
        for _ in range(2):
            with pytest.raises(ForkedChain, match="comigs-coordinator restored"):
                device.exchange(tokens=0)
            assert device.value == value
            reopened(device)
    coordinator.command("restored")
    exchange_until_quiet(coordinator, *devices)
    assert (newest(coordinator), head.value, waiting.value) == (pytest.approx(5, abs=0.01),) * 3


def test_an_open_rounds_update_that_a_backup_held_counts_once(tmp_path):
    coordinator = Coordinator(tmp_path / "data", update_format="float32", goal=2)
    try:
        first, second = devices = make(coordinator, tmp_path, 2)
        begin(coordinator, devices)
        first.learn(1.0)
        first.exchange()
        coordinator.command("backup", str(tmp_path / "x.tar"))
        second.learn(1.0)
        second.exchange()
        settled(coordinator)
        for device in devices:
            device.exchange(tokens=0)
        restore(coordinator, tmp_path / "x.tar")
        assert coordinator.ask("status")["updates"] == 1
        for _ in range(3):
            for device in devices:
                assert device.exchange(tokens=0).offline is None
            settled(coordinator)
        counted = [update for row in coordinator.rounds() for update in row["updates"] if row["number"] > 0]
        assert len(counted) == 2
        assert (newest(coordinator), first.value, second.value) == (1, 1, 1)
    finally:
        coordinator.stop()


def test_a_coordinator_that_moved_keeps_what_waits(coordinator, tmp_path):
    by_hand, by_link, behind = devices = make(coordinator, tmp_path, 3)
    begin(coordinator, devices)
    each(coordinator, *devices)
    for device in (by_hand, by_link):
        learn_away(device, 1.0)
    coordinator.stop()
    coordinator.start()
    for device in devices:
        device.transport.patience = 0.3
        assert device.exchange(tokens=0).offline
    joining.move(Home(by_hand.folder.root.parent), coordinator.address.removeprefix("https://"))
    joining.join(Home(by_link.folder.root.parent), coordinator.invite(), None, generalist(base=BASE))
    for device in (by_hand, by_link):
        assert FleetFolder(Home(device.folder.root.parent)).outbox() is not None
        assert reopened(device).books.standing.head >= 1
    behind.learn(1.0)
    assert behind.exchange().waits
    joining.move(Home(behind.folder.root.parent), coordinator.address)
    reopened(behind)
    exchange_until_quiet(coordinator, *devices)
    assert (newest(coordinator), *(device.value for device in devices)) == (pytest.approx(6, abs=0.01),) * 4


def test_what_was_learned_away_beyond_the_fleets_bound_comes_in_parts(coordinator, tmp_path):
    away, there = devices = make(coordinator, tmp_path, 2)
    begin(coordinator, devices)
    each(coordinator, there, there, there, there)
    away.exchange(tokens=0)
    reopened(away)
    learn_away(away, 8.0)
    reopened(away)
    for _ in range(2):
        exchange_until_quiet(coordinator, *devices)
    assert newest(coordinator) == pytest.approx(12, abs=0.01)
