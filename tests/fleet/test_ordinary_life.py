"""What happens to a fleet in a year, with a real coordinator: restored, moved, away, damaged; every number is counted once.

A round is one update, so the newest generalist is the sum of all that was learned and counted.
"""

import json
import shutil
import subprocess

import pytest

from comigs_edge.fleet import joining, rounds
from comigs_edge.fleet.chain import ForkedChain
from comigs_edge.fleet.client import MAX_PIECE, PIECE
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.http import HTTPTransport
from comigs_edge.fleet.outcome import Judgement
from comigs_edge.home.folder import Home
from coordinator.protocol import wire
from tests.coordinator.proxy import Faults, Proxy
from tests.coordinator.rig import Coordinator, arrays, generalist
from tests.coordinator.test_bad_network import OVERHEAD
from tests.fleet import rig
from tests.fleet.rig import BASE, NAME
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


@pytest.mark.parametrize("starts", [False, True])
def test_an_acknowledged_update_that_the_coordinators_disk_lost_is_brought_again(tmp_path, starts):
    coordinator = Coordinator(tmp_path / "data", update_format="float32", goal=2)
    try:
        first, second = devices = make(coordinator, tmp_path, 2)
        begin(coordinator, devices)
        known = set((coordinator.data / "payloads").iterdir())
        first.learn(1.0)
        assert first.exchange().receipts
        (update,) = set((coordinator.data / "payloads").iterdir()) - known
        update.unlink()
        if starts:
            coordinator.stop()
            coordinator.restart()
            assert first.exchange(tokens=0).receipts
        second.learn(1.25)  # other bytes than the first's, which would be its payload too
        second.exchange()
        number = settled(coordinator)["newest_round"]
        if not starts:
            assert coordinator.ask("status")["lost"][0].endswith(f"in round {number}")
            assert first.exchange(tokens=0).receipts
            second.exchange(tokens=0)
            second.learn(1.0)
            second.exchange()
            settled(coordinator)
        assert [row["devices"] for row in coordinator.rounds()[-2:]] == [2, 0]
        learned = 1.125 if starts else 2.25
        exchange_until_quiet(coordinator, *devices)
        assert [newest(coordinator), first.value, second.value] == [pytest.approx(learned, abs=0.01)] * 3
    finally:
        coordinator.stop()


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("rounds", [0, 1])
def test_a_copy_of_the_same_open_round_that_is_put_back_loses_nothing(tmp_path, rounds, closes):
    coordinator = Coordinator(tmp_path / "data", update_format="float32", goal=3)
    try:
        first, lost, *others = devices = make(coordinator, tmp_path, 4)
        begin(coordinator, devices)
        for _ in range(rounds):
            for device in (first, lost, others[0]):
                device.learn(1.0)
                assert device.exchange().receipts
            settled(coordinator)
        for device in devices:
            device.exchange(tokens=0)
        first.learn(1.0)
        assert first.exchange().receipts
        copied(coordinator, tmp_path / "copy")
        lost.learn(1.0)
        assert lost.exchange().receipts
        put_back(coordinator, tmp_path / "copy")
        if closes:
            for device in others:
                device.learn(1.0)
                assert device.exchange().receipts
            settled(coordinator)
        reopened(lost)
        assert lost.exchange(tokens=0).receipts
        for _ in range(2):
            assert not lost.exchange(tokens=0).receipts
        brought = 300 * rounds + 200 + 200 * closes
        assert sum(update["tokens"] for row in coordinator.rounds() for update in row["updates"]) == brought
    finally:
        coordinator.stop()


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


def test_an_upload_goes_on_with_the_same_bytes_over_any_number_of_outages(coordinator, tmp_path, monkeypatch):
    big = {f"generalist.blk.{block}.ffn_gate.lora_a": (64, 1024) for block in range(4)}
    monkeypatch.setattr(rig, "SHAPES", big)
    monkeypatch.setattr(rig, "arrays", lambda value: arrays(value, big))
    monkeypatch.setattr(rig, "generalist", lambda base: generalist(big, base))
    monkeypatch.setattr("comigs_edge.fleet.client.MAX_WAIT", 0.1)
    (device,) = make(coordinator, tmp_path, 1)
    begin(coordinator, [device])
    size = 4 * 4 * 64 * 1024
    with Proxy(coordinator.port, Faults(rate=350_000, flap=(0.8, 0.5))) as proxy:
        device.transport.address, device.transport.patience = f"https://127.0.0.1:{proxy.port}", 0.2
        receipts, exchanges = [], 0
        while not receipts and exchanges < 300:
            device.learn(1.0)
            receipts, exchanges = device.exchange().receipts, exchanges + 1
            assert len(list((coordinator.data / "uploads").iterdir())) <= 1
            if exchanges % 3 == 0:
                transport = device.transport
                device.open()  # the device is started anew
                device.transport = transport
        assert len(receipts) == 1
        assert exchanges > 2
        assert proxy.up <= size + proxy.cuts * PIECE + MAX_PIECE + proxy.connections * OVERHEAD
    device.transport.address = coordinator.address
    exchange_until_quiet(coordinator, device)
    assert newest(coordinator) == pytest.approx(exchanges, abs=0.05)


def test_one_that_trained_alone_from_another_seed_brings_what_it_learned(coordinator, tmp_path):
    first, late = devices = make(coordinator, tmp_path, 2)
    late.initial = late.local = arrays(7.0)  # of another seed
    learn_alone = late.transport._session
    late.transport._session = Broken()
    for _ in range(2):
        late.learn(1.0)
        late.exchange()
    begin(coordinator, [first])
    each(coordinator, first, value=2.0)
    reopened(late).transport._session = learn_alone
    judged = []
    late.exchange(judge=lambda before, after: judged.append(1) or Judgement(1.0, 1.0))
    assert judged
    exchange_until_quiet(coordinator, *devices)
    assert (newest(coordinator), first.value, late.value) == (pytest.approx(4, abs=0.01),) * 3


def test_a_device_that_was_in_another_fleet_meanwhile_goes_on_where_it_was(coordinator, tmp_path):
    device, _ = devices = make(coordinator, tmp_path, 2)
    home = Home(device.folder.root.parent)
    begin(coordinator, devices)
    each(coordinator, *devices)
    learn_away(device, 1.0)
    here = dict(device.local), device.books.mark
    device.folder.leave()
    other = Coordinator(tmp_path / "other", update_format="float32", goal=1)
    try:
        joining.join(home, other.invite(), None, generalist(base=BASE))
        device.folder = FleetFolder(home)
        reopened(device)
        assert device.books.standing.head == -1
        device.local = device.books.resume(*here)
        begin(other, [device])
        each(other, device)
        device.folder.leave()
        joining.join(home, coordinator.invite(), None, generalist(base=BASE))
    finally:
        other.stop()
    device.folder = FleetFolder(home)
    reopened(device)
    assert device.folder.outbox() is not None
    device.local = device.books.resume(*here)
    exchange_until_quiet(coordinator, *devices)
    assert (newest(coordinator), *(each.value for each in devices)) == (pytest.approx(3, abs=0.01),) * 3


def test_where_a_fleet_goes_back_what_each_of_three_brought_stays(tmp_path):
    coordinator = Coordinator(tmp_path / "data", update_format="float32")
    try:
        devices = make(coordinator, tmp_path, 3)
        begin(coordinator, devices)

        def worse(before, after):
            return Judgement(1.0, 9.0)

        for number in (1, 3):
            for device in devices:
                device.learn(1.0)
                assert device.exchange().offline is None
            settled(coordinator)
            if number == 1:
                for device in devices[:2]:
                    assert device.exchange(tokens=0, judge=worse).refused == 1
        exchange_until_quiet(coordinator, *devices)
        assert coordinator.rounds()[2]["rolled_back_to"] == 0
        assert (newest(coordinator), *(device.value for device in devices)) == (pytest.approx(2, abs=0.01),) * 4
    finally:
        coordinator.stop()


def test_a_training_goes_on_with_a_damaged_outbox_and_brings_what_was_in_it(run, ready, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "PATIENCE", 0.5)
    coordinator = Coordinator(tmp_path / "coordinator", local_steps=2)
    try:
        run("join", coordinator.invite())
        run("train", "--steps", 2)
        settled(coordinator)
        coordinator.stop()
        run("train", "--steps", 2)
        outbox = ready / "fleet" / "outbox.safetensors"
        outbox.write_bytes(outbox.read_bytes()[:-7])
        coordinator.restart()
        result = run("train", "--steps", 2, "--json")
        assert json.loads(result.stdout)["finished"]
        assert "what the model has learned is kept" in result.stderr.replace("\n", " ")
        assert json.loads(result.stdout)["fleet"]["updates"] >= 1
    finally:
        coordinator.stop()
