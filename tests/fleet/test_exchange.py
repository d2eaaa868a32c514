"""Exchanges with a real coordinator: as with a folder, offline, late, with lost receipts, against a history set back."""

import contextlib
import math
import shutil
import ssl

import pytest
import requests

from comigs_edge.fleet.chain import ForkedChain
from comigs_edge.fleet.client import RemoteRefused
from comigs_edge.fleet.outcome import Judgement
from comigs_edge.fleet.session import Deadline
from comigs_edge.fleet.transport import Offline
from coordinator.protocol import wire
from tests.coordinator.rig import Coordinator, random_arrays
from tests.fleet.rig import NAME, Device, FolderFleet, scaled


def settled(coordinator):
    """Waits until no closed round is without its generalist."""
    return coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1)


def make(coordinator, tmp_path, count):
    return [Device(tmp_path / f"home-{index}").join_coordinator(coordinator.invite()) for index in range(count)]


def begin(coordinator, devices):
    """The first generalist, zeros, which every device takes over."""
    devices[0].exchange(tokens=0)
    settled(coordinator)
    for device in devices:
        device.exchange(tokens=0)


@pytest.mark.parametrize("update_format", ["float32", "int8"])
def test_two_devices_make_the_same_generalists_with_a_folder_and_over_http(tmp_path, update_format):
    coordinator = Coordinator(tmp_path / "data", update_format=update_format)
    try:
        online = make(coordinator, tmp_path, 2)
        fleet = FolderFleet(tmp_path / "fleet", update_format=update_format)
        carried = [Device(tmp_path / name).join_folder(fleet, device.books.membership.device)
                   for name, device in zip(("one", "two"), online, strict=True)]  # fmt: skip
        for devices in (online, carried):
            devices[0].learn(scaled(random_arrays(99), 0.1))
        for number in range(4):
            for devices, close in ((online, lambda: settled(coordinator)), (carried, fleet.close)):
                for index, device in enumerate(devices[: 2 if number else 1]):
                    if number:
                        device.exchange(tokens=0)
                        device.learn(scaled(random_arrays(10 * number + index), 0.1))
                    device.exchange()
                close()
        for one, other in zip(online, carried, strict=True):
            one.exchange(tokens=0)
            other.exchange(tokens=0)
            assert wire.encode(one.local) == wire.encode(other.local)
        for number in range(4):
            theirs = coordinator.data / "payloads" / coordinator.rounds()[number]["sha256"]
            assert theirs.read_bytes() == (fleet.root / str(number)).read_bytes()
    finally:
        coordinator.stop()


def test_an_update_made_offline_waits_and_counts_less_when_it_comes_late(coordinator, tmp_path):
    away, there = make(coordinator, tmp_path, 2)
    begin(coordinator, (there, away))
    session, away.transport._session = away.transport._session, Broken()
    away.learn(1.0)
    outcome = away.exchange()
    assert outcome.offline
    assert outcome.waits
    away.transport._session = session
    coordinator.stop()
    coordinator.flags["goal"] = 1  # rounds pass without the device that is away
    coordinator.restart()
    for _ in range(3):
        there.learn(1.0)
        there.exchange()
        settled(coordinator)
        there.exchange(tokens=0)
    away.open()  # and it was restarted
    outcome = away.exchange(tokens=0)
    assert [receipt.weight for receipt in outcome.receipts] == [pytest.approx(1 / math.sqrt(1 + 3), abs=1e-4)]
    assert not outcome.waits
    assert outcome.taken_over >= 3


def test_an_update_too_far_behind_is_put_on_top_of_the_newest_generalist(tmp_path):
    coordinator = Coordinator(tmp_path / "data", update_format="float32", goal=1, max_staleness=1)
    try:
        away, there = make(coordinator, tmp_path, 2)
        begin(coordinator, (there, away))
        session, away.transport._session = away.transport._session, Broken()
        away.learn(0.5)
        assert away.exchange().waits
        for _ in range(3):
            there.learn(1.0)
            there.exchange()
            settled(coordinator)
            there.exchange(tokens=0)
        away.transport._session = session
        outcome = away.exchange(tokens=0)
        assert away.value == pytest.approx(3.0 + 0.5)
        assert [receipt.weight for receipt in outcome.receipts] == [1.0]  # a change of the newest generalist now
        settled(coordinator)
        assert there.exchange(tokens=0).taken_over == 4
        assert there.value == pytest.approx(3.5)
    finally:
        coordinator.stop()


def lose_receipts(device):
    """The next commits arrive, and nobody hears so; returns how to end that."""
    commit = device.transport.commit

    def lossy(wish):
        commit(wish)
        raise Offline("the answer was lost")

    device.transport.commit = lossy
    return lambda: setattr(device.transport, "commit", commit)


def test_an_update_whose_receipt_was_lost_is_known_from_the_state(coordinator, tmp_path):
    device, other = make(coordinator, tmp_path, 2)
    begin(coordinator, (device, other))
    mend = lose_receipts(device)
    device.learn(2.0)
    outcome = device.exchange()
    assert outcome.offline
    assert outcome.waits
    mend()
    outcome = device.exchange(tokens=0)  # the round is still open: nothing is committed again
    assert outcome.had_arrived
    assert not outcome.waits
    assert device.reference == 2.0


def test_an_update_whose_receipt_was_lost_counts_once(coordinator, tmp_path):
    (device,) = make(coordinator, tmp_path, 1)
    begin(coordinator, [device])
    mend = lose_receipts(device)
    device.learn(2.0)
    device.exchange()
    mend()
    device.learn(1.0)  # training continued
    device.exchange()
    for _ in range(2):
        settled(coordinator)
        device.exchange(tokens=0)
    assert device.value == pytest.approx(3.0)
    assert sum(len(row["updates"]) for row in coordinator.rounds()) == 3  # the first generalist, two and one


def test_a_coordinator_from_before_updates_had_ids_counts_them_all_the_same(coordinator, tmp_path, monkeypatch):
    (device,) = make(coordinator, tmp_path, 1)
    state, commit = device.transport.state, device.transport.commit

    def strict(wish):
        if wish.update_id is not None:
            raise RemoteRefused("bad_message", "Object contains unknown field `update_id`")
        return commit(wish)

    def silent():
        answer = state()
        answer.counted = []
        return answer

    device.transport.commit, device.transport.state = strict, silent
    begin(coordinator, [device])
    device.learn(2.0)
    assert [receipt.round for receipt in device.exchange().receipts] == [1]
    settled(coordinator)
    device.exchange(tokens=0)
    assert (device.value, device.reference) == (2.0, 2.0)


def three_after_a_round(coordinator, tmp_path):
    devices = make(coordinator, tmp_path, 3)
    begin(coordinator, devices)
    for device in devices:
        device.learn(1.0)
        device.exchange()
    settled(coordinator)
    return devices


def test_a_third_of_refusals_turns_a_generalist_back(coordinator, tmp_path):
    devices = three_after_a_round(coordinator, tmp_path)

    def worse(before, after):
        return Judgement(1.0 + float(before[0][NAME][0, 0]), 1.0 + float(after[NAME][0, 0]))

    for device in devices[:2]:
        outcome = device.exchange(tokens=0, judge=worse)
        assert (outcome.refused, outcome.taken_over) == (1, None)
        assert outcome.judgement == Judgement(1.0, 2.0)
    row = coordinator.rounds()[2]
    assert (row["rolled_back_to"], row["refusals"]) == (0, 0)
    assert coordinator.rounds()[1]["refusals"] == 2
    for device in (devices[0], devices[2]):
        assert device.exchange(tokens=0, judge=worse).taken_over == 2
        assert device.value == 1.0  # what each of them had brought itself is on top again
        assert device.reference == 1.0  # and was brought once more


def test_a_coordinator_restored_from_an_old_backup_is_not_followed(coordinator, tmp_path):
    (device,) = make(coordinator, tmp_path, 1)
    device.exchange(tokens=0)
    settled(coordinator)
    coordinator.stop()
    shutil.copytree(coordinator.data, tmp_path / "backup")
    coordinator.restart()
    device.exchange(tokens=0)
    for _ in range(2):
        device.learn(1.0)
        device.exchange()
        settled(coordinator)
        device.exchange(tokens=0)
    coordinator.stop()
    shutil.rmtree(coordinator.data)
    shutil.copytree(tmp_path / "backup", coordinator.data)
    coordinator.restart()
    with pytest.raises(ForkedChain, match="set back"):
        device.exchange(tokens=0)
    other = Device(tmp_path / "other").join_coordinator(coordinator.invite())
    for _ in range(3):
        other.exchange(tokens=0)
        other.learn(5.0)
        other.exchange()
        settled(coordinator)
    with pytest.raises(ForkedChain, match=r"breaks the chain|set back"):
        device.exchange(tokens=0)


def test_devices_with_different_histories_hold_the_same_bits(coordinator, tmp_path):
    coordinator.stop()
    coordinator.flags["goal"] = 1
    coordinator.restart()
    steady, seldom = make(coordinator, tmp_path, 2)
    begin(coordinator, (steady, seldom))
    for number in range(3):
        steady.learn(scaled(random_arrays(number), 0.1))
        steady.exchange()
        settled(coordinator)
        steady.exchange(tokens=0)
    late = Device(tmp_path / "late").join_coordinator(coordinator.invite())
    outcomes = [device.exchange(tokens=0) for device in (seldom, late)]
    assert [outcome.taken_over for outcome in outcomes] == [3, 3]
    theirs = (coordinator.data / "payloads" / coordinator.rounds()[3]["sha256"]).read_bytes()
    for device in (steady, seldom, late):
        assert device.folder.generalist_path(3).read_bytes() == theirs
        assert wire.encode(device.local) == theirs


def test_a_generalist_that_is_published_again_needs_no_download(coordinator, tmp_path):
    devices = three_after_a_round(coordinator, tmp_path)
    for device in devices[:2]:
        assert device.exchange(tokens=0, judge=lambda before, after: Judgement(1.0, 2.0)).refused == 1
    assert coordinator.rounds()[2]["rolled_back_to"] == 0
    for device in devices:
        outcome = device.exchange(tokens=0)
        assert (outcome.taken_over, outcome.bytes_received) == (2, 0)
        assert device.folder.generalist_path(2).read_bytes() == device.folder.generalist_path(0).read_bytes()


class Broken:
    """A network that is not there."""

    def __init__(self):
        self.deadline = Deadline(ssl.PROTOCOL_TLS_CLIENT)

    def within(self, seconds):
        return contextlib.nullcontext()

    def __getattr__(self, name):
        def fail(*arguments, **options):
            raise requests.ConnectionError("no network")

        return fail
