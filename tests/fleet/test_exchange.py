"""The device's side of the rounds against a real coordinator: nothing lost, nothing twice, late updates, gates, forks."""

import math
import shutil

import numpy as np
import pytest

from comigs_edge.fleet.chain import ForkedChain
from comigs_edge.fleet.client import Offline, Remote
from comigs_edge.fleet.exchange import Federation
from comigs_edge.fleet.folder import FleetFolder, Membership
from comigs_edge.fleet.outcome import Judgement
from comigs_edge.home.folder import Home
from coordinator.protocol import keys
from coordinator.protocol.messages import Join
from tests.coordinator.rig import SHAPES, Coordinator, arrays, generalist, random_arrays

BASE = "ab" * 32
NAME = "generalist.blk.0.ffn_gate.lora_a"


class Device:
    """A home in a fleet, without a model: the test is the training."""

    def __init__(self, root, link, gate=0.1, patience=2.0):
        address, code, pin = keys.read_link(link)
        self.folder = FleetFolder(Home(root))
        key, self.gate = self.folder.key(), gate
        public = keys.public_text(key)
        self.remote = Remote(address, pin, key, keys.device_id(public), patience)
        wish = Join(code=code, name=None, public_key=public, generalist=generalist(base=BASE), version="test")
        joined = self.remote.join(wish)
        member = Membership(
            address, pin.hex(), joined.fleet, joined.device, joined.name, joined.signing_key, "", 0, "", ""
        )
        self.folder.save_membership(member.with_settings(joined.settings))
        self.local = arrays(0.0)
        self.open()

    def open(self):
        """As a new process would."""
        self.federation = Federation(self.folder, self.remote, SHAPES, BASE, self.gate)

    def learn(self, value):
        """A training step: every weight changes by `value`."""
        self.local = {name: array + np.float32(value) for name, array in self.local.items()}

    def exchange(self, tokens=100, judge=None):
        found = self.federation.exchange(self.local, tokens, judge)
        if found.generalist is not None:
            self.local = found.generalist
        return found

    @property
    def value(self):
        return float(self.local[NAME][0, 0])


def settled(coordinator):
    """Waits until no closed round is without its generalist."""
    return coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1)


@pytest.fixture
def coordinator(tmp_path):
    running = Coordinator(tmp_path / "data", update_format="float32")
    yield running
    if running.process.poll() is None:
        running.stop()


def make(coordinator, tmp_path, count, **options):
    return [Device(tmp_path / f"home-{index}", coordinator.invite(), **options) for index in range(count)]


def test_a_late_joiner_starts_from_the_fleets_generalist(coordinator, tmp_path):
    (first,) = make(coordinator, tmp_path, 1)
    first.learn(3.0)
    assert [receipt.round for receipt in first.exchange().receipts] == [0]
    settled(coordinator)
    late = Device(tmp_path / "late", coordinator.invite())
    late.learn(100.0)
    found = late.exchange(tokens=0)
    assert (found.taken_over, late.value) == (0, 3.0)


def test_a_round_is_the_mean_of_the_changes_and_what_was_not_sent_yet_stays_on_top(coordinator, tmp_path):
    first, second = make(coordinator, tmp_path, 2)
    first.exchange(tokens=0)  # the first generalist: zeros
    settled(coordinator)
    for device in (first, second):
        device.exchange(tokens=0)
    first.learn(1.0)
    assert [receipt.round for receipt in first.exchange().receipts] == [1]
    first.learn(0.25)  # trains on while the other has not reported
    assert first.exchange().receipts == []
    second.learn(4.0)
    second.exchange()
    settled(coordinator)
    found = first.exchange(tokens=0)
    assert found.taken_over == 1
    assert first.value == pytest.approx(2.5 + 0.25)  # (1 + 4) / 2, and its own quarter that nobody has yet
    assert [receipt.round for receipt in found.receipts] == [2]  # which is sent now


def test_an_update_made_offline_waits_and_counts_less_when_it_comes_late(coordinator, tmp_path):
    away, there = make(coordinator, tmp_path, 2)
    there.exchange(tokens=0)
    settled(coordinator)
    for device in (away, there):
        device.exchange(tokens=0)
    session = away.remote._session
    away.remote._session = Broken()
    away.learn(1.0)
    found = away.exchange()
    assert found.offline
    assert found.waits
    away.remote._session = session
    coordinator.stop()
    coordinator.flags["goal"] = 1  # rounds pass without the device that is away
    coordinator.restart()
    for _ in range(3):
        there.learn(1.0)
        there.exchange()
        settled(coordinator)
        there.exchange(tokens=0)
    away.open()  # and it was restarted
    found = away.exchange(tokens=0)
    assert [receipt.weight for receipt in found.receipts] == [pytest.approx(1 / math.sqrt(1 + 3), abs=1e-4)]
    assert not found.waits
    assert found.taken_over >= 3


def test_an_update_too_far_behind_is_put_on_top_of_the_newest_generalist(coordinator, tmp_path):
    coordinator.stop()
    coordinator.flags |= {"goal": 1, "max_staleness": 1}
    coordinator.restart()
    away, there = make(coordinator, tmp_path, 2)
    there.exchange(tokens=0)
    settled(coordinator)
    for device in (away, there):
        device.exchange(tokens=0)
    session, away.remote._session = away.remote._session, Broken()
    away.learn(0.5)
    assert away.exchange().waits
    for _ in range(3):
        there.learn(1.0)
        there.exchange()
        settled(coordinator)
        there.exchange(tokens=0)
    away.remote._session = session
    found = away.exchange(tokens=0)
    assert away.value == pytest.approx(3.0 + 0.5)
    assert [receipt.weight for receipt in found.receipts] == [1.0]  # a change of the newest generalist now
    settled(coordinator)
    assert there.exchange(tokens=0).taken_over == 4
    assert there.value == pytest.approx(3.5)


def test_an_update_whose_acknowledgement_was_lost_counts_once(coordinator, tmp_path):
    (device,) = make(coordinator, tmp_path, 1)
    device.exchange(tokens=0)
    settled(coordinator)
    device.exchange(tokens=0)
    commit = device.remote.commit

    def lossy(wish):
        commit(wish)
        raise Offline("the answer was lost")

    device.remote.commit = lossy
    device.learn(2.0)
    found = device.exchange()
    assert found.offline
    assert found.waits
    device.remote.commit = commit
    device.learn(1.0)  # training went on
    device.exchange()
    for _ in range(2):
        settled(coordinator)
        device.exchange(tokens=0)
    assert device.value == pytest.approx(3.0)
    totals = sum(len(row["updates"]) for row in coordinator.rounds())
    assert totals == 3  # the first generalist, the two and the one


def test_a_training_resumed_from_before_an_exchange_sends_no_step_twice(coordinator, tmp_path):
    (device,) = make(coordinator, tmp_path, 1)
    device.exchange(tokens=0)
    settled(coordinator)
    device.exchange(tokens=0)
    checkpoint, mark = dict(device.local), device.federation.mark
    device.learn(1.0)
    device.exchange()
    settled(coordinator)
    device.exchange(tokens=0)
    device.open()  # killed; the checkpoint is older
    device.local = device.federation.begin(checkpoint, mark)
    assert device.value == pytest.approx(1.0)  # what was sent, and not the old state
    device.learn(1.0)
    device.exchange()
    settled(coordinator)
    device.exchange(tokens=0)
    assert device.value == pytest.approx(2.0)


def test_a_power_cut_behind_the_acknowledgement_moves_nothing_twice(coordinator, tmp_path):
    (device,) = make(coordinator, tmp_path, 1)
    device.exchange(tokens=0)
    settled(coordinator)
    device.exchange(tokens=0)
    device.learn(2.0)
    device.folder.empty_outbox = lambda: None  # the power goes before the outbox is emptied
    device.exchange()
    device.folder = FleetFolder(Home(tmp_path / "home-0"))
    device.open()
    assert device.folder.outbox() is not None
    for _ in range(2):
        settled(coordinator)
        device.exchange(tokens=0)
    assert device.value == pytest.approx(2.0)
    assert not device.folder.was_tried
    assert device.federation.standing.reference[NAME][0, 0] == pytest.approx(2.0)


def test_progress_made_without_the_fleet_is_brought_by_the_next_training(coordinator, tmp_path):
    (device,) = make(coordinator, tmp_path, 1)
    device.exchange(tokens=0)
    settled(coordinator)
    device.exchange(tokens=0)
    mark = device.federation.mark
    device.learn(1.5)  # train --no-sync
    device.open()
    device.local = device.federation.begin(device.local, mark)
    device.learn(0.5)
    device.exchange()
    settled(coordinator)
    device.exchange(tokens=0)
    assert device.federation.standing.reference[NAME][0, 0] == pytest.approx(2.0)


def test_what_int8_rounds_away_comes_with_later_updates(tmp_path):
    coordinator = Coordinator(tmp_path / "data", update_format="int8")
    try:
        (device,) = make(coordinator, tmp_path, 1)
        device.exchange(tokens=0)
        truth = arrays(0.0)
        for seed in range(6):
            settled(coordinator)
            device.exchange(tokens=0)
            step = {name: array * np.float32(0.01) for name, array in random_arrays(seed).items()}
            truth = {name: array + step[name] for name, array in truth.items()}
            device.local = {name: array + step[name] for name, array in device.local.items()}
            device.exchange()
        settled(coordinator)
        device.exchange(tokens=0)
        for name, array in truth.items():
            np.testing.assert_allclose(device.local[name], array, atol=1e-6)  # nothing is lost on the device
            published = device.federation.standing.reference[name]
            assert np.abs(published - array).max() < 0.05 / 127  # the coordinator lacks one rounding, not six
    finally:
        coordinator.stop()


def test_a_generalist_that_makes_the_text_worse_is_refused_and_a_third_of_refusals_turns_it_back(coordinator, tmp_path):
    devices = make(coordinator, tmp_path, 3)
    devices[0].exchange(tokens=0)
    settled(coordinator)
    for device in devices:
        device.exchange(tokens=0)
        device.learn(1.0)
        device.exchange()
    settled(coordinator)

    def worse(before, after):
        return Judgement(1.0 + float(before[NAME][0, 0]), 1.0 + float(after[NAME][0, 0]))

    for device in devices[:2]:
        found = device.exchange(tokens=0, judge=worse)
        assert (found.refused, found.taken_over) == (1, None)
        assert found.judgement == Judgement(1.0, 2.0)
    row = coordinator.rounds()[2]
    assert (row["rolled_back_to"], row["refusals"]) == (0, 0)
    assert coordinator.rounds()[1]["refusals"] == 2
    assert devices[0].exchange(tokens=0, judge=worse).taken_over == 2
    assert devices[2].exchange(tokens=0).taken_over == 2
    assert devices[2].value == 0.0


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
    other = Device(tmp_path / "other", coordinator.invite())
    for _ in range(3):
        other.exchange(tokens=0)
        other.learn(5.0)
        other.exchange()
        settled(coordinator)
    with pytest.raises(ForkedChain, match=r"breaks the chain|set back"):
        device.exchange(tokens=0)


def test_a_device_goes_back_to_a_kept_generalist_and_takes_over_the_next_one(coordinator, tmp_path):
    (device,) = make(coordinator, tmp_path, 1)
    for _ in range(5):
        device.learn(1.0)
        device.exchange()
        settled(coordinator)
        device.exchange(tokens=0)
    assert sorted(device.federation.standing.kept) == ["2", "3", "4"]
    number, device.local = device.federation.roll_back(None)
    assert (number, device.value) == (3, 4.0)
    assert device.exchange(tokens=0).taken_over is None
    device.learn(0.5)
    device.exchange()
    settled(coordinator)
    assert device.exchange(tokens=0).taken_over == 5


def test_freezing_the_inner_side_halves_what_is_sent_and_never_changes_it(tmp_path):
    coordinator = Coordinator(tmp_path / "data", update_format="float32", averaging="freeze-a")
    try:
        (device,) = make(coordinator, tmp_path, 1)
        device.exchange(tokens=0)
        settled(coordinator)
        device.exchange(tokens=0)
        assert device.federation.frozen() == {name for name in SHAPES if name.endswith("lora_a")}
        device.learn(1.0)
        found = device.exchange()
        assert found.bytes_sent < 0.6 * sum(4 * math.prod(shape) for shape in SHAPES.values())
        settled(coordinator)
        device.exchange(tokens=0)
        assert device.federation.standing.reference["generalist.blk.0.ffn_gate.lora_b"][0, 0] == 1.0
        assert device.federation.standing.reference[NAME][0, 0] == 0.0
    finally:
        coordinator.stop()


class Broken:
    """A network that is not there."""

    def __getattr__(self, name):
        import requests

        def fail(*arguments, **options):
            raise requests.ConnectionError("no network")

        return fail
