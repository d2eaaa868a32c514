"""What a device has learned and the fleet has not counted is on top, whatever happens: exact, because integers add exactly."""

import math

import numpy as np
import pytest

from comigs_edge.errors import ComigsError
from comigs_edge.fleet import joining
from comigs_edge.fleet.back import roll_back
from comigs_edge.fleet.chain import ForkedChain
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.outcome import Judgement
from comigs_edge.fleet.transport import Offline
from comigs_edge.home.folder import Home
from coordinator.protocol import compress
from tests.coordinator.rig import SHAPES, Coordinator, arrays, generalist
from tests.fleet.rig import BASE, NAME, Device, FolderFleet
from tests.fleet.test_books import offline
from tests.home.disks import fill, needs_mount, small_disk


def rounds(fleet, device, *values):
    for value in values:
        device.learn(value)
        device.exchange()
        fleet.close()
        device.exchange(tokens=0)


def newest(fleet):
    return float(fleet.arrays(len(fleet.links) - 1)[NAME][0, 0])


@pytest.mark.parametrize("target", [-1, 0, 2, 4])
def test_after_a_restoration_the_progress_since_is_on_top(fleet, device, target):
    rounds(fleet, device, 1.0, 2.0, 4.0, 8.0)
    device.learn(16.0)
    fleet.restore(target)
    assert device.exchange().restored_to == target or target == 4
    for _ in range(3):
        fleet.close() if fleet.updates else None
        device.exchange(tokens=0)
    assert device.value == 31.0
    fleet.close()
    assert newest(fleet) == 31.0


def test_without_a_note_a_set_back_coordinator_is_refused_and_nothing_is_lost(fleet, device):
    rounds(fleet, device, 1.0, 2.0)
    device.learn(4.0)
    fleet.restore(1, says_so=False)
    with pytest.raises(ForkedChain, match="comigs-coordinator restored"):
        device.exchange()
    assert (device.value, device.books.standing.head) == (7.0, 2)


def test_a_note_of_another_key_is_not_believed(fleet, device):
    rounds(fleet, device, 1.0, 2.0)
    key, fleet.key = fleet.key, FolderFleet(fleet.root / "other").key
    fleet.restore(1)
    fleet.key = key
    with pytest.raises(ForkedChain):
        device.exchange()


def test_a_way_back_by_hand_keeps_what_was_not_sent(fleet, device):
    rounds(fleet, device, 1.0, 2.0)
    exchange, device.transport.exchange = device.transport.exchange, offline
    device.learn(8.0)
    assert device.exchange().waits
    _, device.local = roll_back(device.books, 1, device.local)
    assert device.value == 1.0 + 8.0
    device.transport.exchange = exchange
    device.exchange(tokens=0)
    fleet.close()
    assert newest(fleet) == 3.0 + 8.0
    device.exchange(tokens=0)
    assert device.value == 11.0


def test_where_the_fleet_goes_back_a_device_keeps_what_it_brought_itself(fleet, device):
    rounds(fleet, device, 1.0, 2.0)
    device.learn(4.0)
    fleet.turn_back(1)
    device.exchange(tokens=0)
    assert device.value == 7.0
    fleet.close()
    assert newest(fleet) == 7.0


def test_one_that_trained_before_its_first_contact_loses_nothing_to_another_beginning(fleet, tmp_path):
    late, other = (Device(tmp_path / name).join_folder(fleet, name) for name in ("late", "other"))
    exchange, late.transport.exchange = late.transport.exchange, offline
    for _ in range(3):
        late.learn(1.0)
        late.exchange()
    other.exchange(tokens=0)
    fleet.close()
    late.transport.exchange = exchange
    judged = []
    late.exchange(judge=lambda before, after: judged.append(before) or Judgement(1.0, 1.0))
    assert judged
    fleet.close()
    assert (late.value, newest(fleet)) == (3.0, 3.0)


def test_a_first_generalist_that_makes_the_text_worse_is_refused_without_a_word(fleet, tmp_path):
    Device(tmp_path / "other").join_folder(fleet, "other").exchange(tokens=0)
    fleet.close()
    late = Device(tmp_path / "late").join_folder(fleet, "late")
    late.learn(2.0)
    outcome = late.exchange(judge=lambda before, after: Judgement(1.0, 9.0))
    assert (outcome.refused, outcome.taken_over, late.value, fleet.refusals) == (0, None, 2.0, [])
    fleet.close()
    assert late.exchange(tokens=0, judge=lambda before, after: Judgement(1.0, 1.0)).taken_over == 1
    assert late.value == 2.0


def test_a_loss_that_is_no_number_is_refused(fleet, device):
    rounds(fleet, device, 1.0)
    fleet.turn_back(0)
    assert device.exchange(tokens=0, judge=lambda before, after: Judgement(1.0, math.nan)).refused == 2


def test_a_generalist_that_is_worse_by_a_little_each_round_is_refused_in_the_end(fleet, device, tmp_path):
    other = Device(tmp_path / "other").join_folder(fleet, "other")
    other.exchange(tokens=0)

    def judge(before, after):
        losses = [float(each[NAME][0, 0]) for each in (*before, after)]
        best = min(losses[:-1])
        return Judgement(best, losses[-1], losses[0] <= best)

    taken = []
    for _ in range(8):
        other.learn(0.09)
        other.exchange()
        fleet.close()
        other.exchange(tokens=0)
        taken.append(device.exchange(tokens=0, judge=judge).taken_over)
    assert taken == [1] + 7 * [None]


def test_an_update_beyond_the_fleets_bound_comes_in_parts_within_it(fleet, device):
    weights = sum(math.prod(shape) for shape in SHAPES.values())
    fleet.norm_limit = math.sqrt(weights)
    device.learn(2.5)
    for _ in range(4):
        device.exchange()
        for update in fleet.updates.values():
            parts = compress.unpack(update.packed, SHAPES, update.update_format)
            assert math.sqrt(sum(float(np.square(part, dtype=np.float64).sum()) for part in parts.values())) <= fleet.norm_limit
        fleet.close()
        device.exchange(tokens=0)
    assert newest(fleet) == pytest.approx(2.5)


@pytest.mark.parametrize("update_format", ["float32", "float16", "int8"])
def test_numbers_beyond_those_that_count_come_in_parts_from_the_first_round_on(tmp_path, update_format):
    coordinator, device = Coordinator(tmp_path / "data", update_format=update_format), Device(tmp_path / "home")
    device.initial = device.local = arrays(-60.0)
    device.join_coordinator(coordinator.invite())
    receipts = []
    for number in range(4):
        receipts += device.exchange(tokens=100 if number == 1 else 0).receipts
        coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1)
        if number == 0:
            device.exchange(tokens=0)
            device.learn(100.0)  # and no bound of norms is known
    assert [receipt.round for receipt in receipts] == [0, 1, 2]
    assert device.value == pytest.approx(40.0, rel=0.01)
    assert coordinator.rounds()[2]["devices"] == 1
    coordinator.stop()


def test_what_is_refused_for_what_it_holds_is_said_once_and_sent_again_when_it_changed(tmp_path, coordinator):
    device = Device(tmp_path / "home").join_coordinator(coordinator.invite())
    device.exchange(tokens=0)
    coordinator.until(lambda status: status["newest_round"] == 0)
    device.exchange(tokens=0)
    device.learn(1.0)
    device.local[NAME] = device.local[NAME] * np.float32("nan")
    sent = [device.exchange(tokens=100 if number == 0 else 0).bytes_sent for number in range(3)]
    assert sent[0] > 0 == sent[1] == sent[2]
    device.open()  # another process
    assert device.exchange(tokens=0).bytes_sent == 0
    assert [note for note in device.folder.notes if "not finite" in note and "is sent again once it changed" in note] == (
        device.folder.notes
    )
    assert len(device.folder.notes) == 1
    device.local[NAME] = np.ones_like(device.local[NAME])
    assert len(device.exchange().receipts) == 1
    coordinator.until(lambda status: status["newest_round"] == 1)
    device.exchange(tokens=0)
    assert device.value == 1.0


@needs_mount
def test_a_coordinators_full_disk_is_said_and_what_was_learned_comes_when_there_is_room(tmp_path):
    with small_disk(tmp_path / "disk", 8) as disk:
        coordinator = Coordinator(disk / "data")
        device = Device(tmp_path / "home").join_coordinator(coordinator.invite())
        device.exchange(tokens=0)
        coordinator.until(lambda status: status["newest_round"] == 0)
        device.exchange(tokens=0)
        device.learn(1.0)
        fill(disk, 100_000)
        assert device.exchange().waits
        assert any("the coordinator's disk is full" in note for note in device.folder.notes)
        (disk / "filler").unlink()
        assert len(device.exchange(tokens=0).receipts) == 1
        coordinator.stop()


@pytest.mark.parametrize("name", ["standing.safetensors", "outbox.safetensors", "standing.json"])
@pytest.mark.parametrize("data", [b"", b"x" * 100, None])
def test_a_damaged_file_is_set_aside_and_nothing_is_lost(fleet, device, name, data):
    rounds(fleet, device, 1.0)
    device.exchange(tokens=0)
    path = device.folder.root / name
    device.transport.exchange, exchange = offline, device.transport.exchange
    device.learn(2.0)
    device.exchange()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    mark = device.books.mark
    device.folder = FleetFolder(Home(device.folder.root.parent))
    device.open()
    assert device.books.standing.head == 1  # a coordinator that was set back is known all the same
    device.local = device.books.resume(device.local, mark)
    device.transport.exchange = exchange
    for _ in range(3):
        device.exchange()
        fleet.close()
    device.exchange(tokens=0)
    assert (device.value, newest(fleet)) == (3.0, 3.0)


def test_a_device_that_leaves_and_joins_again_goes_on_where_it_was(fleet, device):
    rounds(fleet, device, 1.0)
    device.transport.exchange, exchange = offline, device.transport.exchange
    device.learn(2.0)
    device.exchange()
    member, mark = device.books.membership, device.books.mark
    device.folder.leave()
    assert not device.folder.is_member
    assert device.folder.take_up("fleet", member.signing_key) == member.joined
    device.open()
    device.local = device.books.resume(device.local, mark)
    device.transport.exchange = exchange
    device.exchange(tokens=0)
    fleet.close()
    assert newest(fleet) == 3.0


def test_updates_of_a_kind_that_is_not_known_are_one_sentence(fleet, device):
    fleet.settings.update_format = "int3"
    with pytest.raises(ComigsError, match="upgrade comigs-edge"):
        device.exchange()


def test_a_coordinator_that_moved_is_followed_with_all_that_waits(tmp_path, monkeypatch):
    coordinator = Coordinator(tmp_path / "data", update_format="float32")
    try:
        home = Home(tmp_path / "home")
        joining.join(home, coordinator.invite(), "pi", generalist(base=BASE))
        folder = FleetFolder(home)
        before = folder.membership()
        coordinator.stop()
        coordinator.start()
        joining.move(home, coordinator.address.removeprefix("https://"))
        assert folder.membership().address == coordinator.address != before.address
        assert folder.membership().joined == before.joined
        joining.join(home, coordinator.invite(), None, generalist(base=BASE))
        assert folder.membership().joined == before.joined
        monkeypatch.setattr(joining, "PATIENCE", 0.5)
        with pytest.raises(Offline, match=r"https://\[fd00::2\]:8443"):  # without its brackets it has no port
            joining.move(home, "fd00::2")
        for address in ("http://pi.local", "https://[::1", "https://pi.local:99999"):
            with pytest.raises(ComigsError, match="is no address of a coordinator"):
                joining.move(home, address)
    finally:
        coordinator.stop()
