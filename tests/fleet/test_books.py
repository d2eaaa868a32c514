"""A device's books, with a fleet in a folder: nothing lost, nothing twice, no sockets and no receipts."""

import math
import subprocess
import sys

import numpy as np
import pytest

from comigs_edge.fleet.back import roll_back
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.outcome import Judgement
from comigs_edge.fleet.transport import Offline
from comigs_edge.home.folder import Home
from tests.coordinator.rig import SHAPES, arrays, random_arrays
from tests.fleet.rig import NAME, Device, FolderFleet, scaled

OUTER = "generalist.blk.0.ffn_gate.lora_b"


@pytest.fixture
def make(tmp_path):
    """A fleet with its first generalist, zeros, which every device has taken over."""

    def start(count, **settings):
        fleet = FolderFleet(tmp_path / "fleet", **settings)
        devices = [Device(tmp_path / f"home-{index}").join_folder(fleet, f"device-{index}") for index in range(count)]
        devices[0].exchange(tokens=0)
        fleet.close()
        for device in devices:
            device.exchange(tokens=0)
        return fleet, devices

    return start


def test_books_need_no_client():
    code = "import sys, comigs_edge.fleet.exchange; print({'requests', 'urllib3', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "set()"


def test_a_round_is_the_mean_and_what_was_not_sent_yet_stays_on_top(make):
    fleet, (first, second) = make(2)
    first.learn(1.0)
    assert first.exchange().waits  # without a receipt nobody knows yet whether it counts
    first.learn(0.25)  # trains on while the other has not reported
    first.exchange()
    second.learn(4.0)
    second.exchange()
    fleet.close()
    outcome = first.exchange(tokens=0)
    assert outcome.had_arrived
    assert outcome.taken_over == 1
    assert first.value == pytest.approx(2.5 + 0.25)  # (1 + 4) / 2, and its own quarter that nobody has yet
    assert outcome.waits  # which is in the folder now
    fleet.close()
    assert fleet.arrays(2)[NAME][0, 0] == pytest.approx(2.75)


def test_an_update_that_waited_counts_less(make):
    fleet, (away, there) = make(2)
    exchange, away.transport.exchange = away.transport.exchange, offline
    away.learn(1.0)
    outcome = away.exchange()
    assert outcome.offline == "no stick"
    assert outcome.waits
    away.learn(0.5)  # learned while it waits: not tried yet, it is sealed again with it
    away.exchange()
    for _ in range(3):
        there.learn(1.0)
        there.exchange()
        fleet.close()
        there.exchange(tokens=0)
    away.transport.exchange = exchange
    away.open()  # and it was restarted
    away.exchange(tokens=0)
    there.learn(1.0)
    there.exchange()
    fleet.close()
    weight = 1 / math.sqrt(1 + 3)
    assert fleet.arrays(4)[NAME][0, 0] == pytest.approx(3 + (1.5 * weight + 1) / (weight + 1), abs=1e-3)


def offline(*arguments):
    raise Offline("no stick")


def test_a_training_resumed_from_before_an_exchange_sends_no_step_twice(make):
    fleet, (device,) = make(1)
    checkpoint, mark = dict(device.local), device.books.mark
    device.learn(1.0)
    device.exchange()
    fleet.close()
    device.exchange(tokens=0)
    device.open()  # killed; the checkpoint is older
    device.local = device.books.resume(checkpoint, mark)
    assert device.value == pytest.approx(1.0)  # what was sent, and not the old state
    device.learn(1.0)
    device.exchange()
    fleet.close()
    device.exchange(tokens=0)
    assert device.value == pytest.approx(2.0)


def test_an_update_that_waits_is_part_of_what_a_training_resumes(make):
    _, (device,) = make(1)
    checkpoint, mark = dict(device.local), device.books.mark
    device.learn(1.0)
    device.exchange()
    device.open()
    assert device.books.resume(checkpoint, mark)[NAME][0, 0] == 1.0
    assert device.books.resume(checkpoint, device.books.mark)[NAME][0, 0] == 0.0


def test_a_power_cut_behind_the_acknowledgement_moves_nothing_twice(make, tmp_path):
    fleet, (device,) = make(1)
    device.learn(2.0)
    device.exchange()
    fleet.close()
    device.folder.move_to_brought = lambda *_: None  # the power goes before the outbox is emptied
    device.exchange(tokens=0)
    device.folder = FleetFolder(Home(tmp_path / "home-0"))
    device.open()
    assert device.folder.outbox() is not None
    for _ in range(2):
        device.exchange(tokens=0)
    assert device.value == pytest.approx(2.0)
    assert not device.folder.was_tried
    assert device.reference == pytest.approx(2.0)


def test_an_update_that_was_tried_is_brought_as_it_is(make):
    fleet, (device,) = make(1)
    device.learn(2.0)
    device.exchange()
    tried = fleet.updates.pop("device-0")  # the stick was lost
    device.learn(1.0)
    device.exchange()
    assert fleet.updates["device-0"].id == tried.id
    fleet.close()
    device.exchange(tokens=0)
    fleet.close()
    assert fleet.arrays(2)[NAME][0, 0] == pytest.approx(3.0)


def test_progress_made_without_the_fleet_is_brought_by_the_next_training(make):
    fleet, (device,) = make(1)
    mark = device.books.mark
    device.learn(1.5)  # train --no-sync
    device.open()
    device.local = device.books.resume(device.local, mark)
    device.learn(0.5)
    device.exchange()
    fleet.close()
    device.exchange(tokens=0)
    assert device.reference == pytest.approx(2.0)


def test_what_int8_rounds_away_comes_with_later_updates(make):
    fleet, (device,) = make(1, update_format="int8")
    truth = arrays(0.0)
    for seed in range(6):
        step = scaled(random_arrays(seed), 0.01)
        truth = {name: array + step[name] for name, array in truth.items()}
        device.learn(step)
        device.exchange()
        fleet.close()
        device.exchange(tokens=0)
    for name, array in truth.items():
        np.testing.assert_allclose(device.local[name], array, atol=6 * 2**-12 * 0.05)  # less than six roundings to float16
        published = device.books.standing.reference[name]
        assert np.abs(published - array).max() < 0.05 / 127  # the fleet lacks one rounding, not six


def test_a_generalist_that_makes_the_text_worse_is_refused_once(make):
    fleet, (first, second) = make(2)
    second.learn(1.0)
    second.exchange()
    fleet.close()

    def worse(before, after):
        return Judgement(1.0 + float(before[0][NAME][0, 0]), 1.0 + float(after[NAME][0, 0]))

    outcome = first.exchange(tokens=0, judge=worse)
    assert (outcome.refused, outcome.taken_over, outcome.judgement) == (1, None, Judgement(1.0, 2.0))
    assert [(each.round, each.loss_before, each.loss_after) for each in fleet.refusals] == [(1, None, None)]
    assert first.exchange(tokens=0, judge=worse).refused is None
    assert first.value == 0.0


def test_a_device_goes_back_to_a_kept_generalist_and_takes_over_the_next_one(make):
    fleet, (device,) = make(1)
    for _ in range(4):
        device.learn(1.0)
        device.exchange()
        fleet.close()
        device.exchange(tokens=0)
    assert sorted(device.books.standing.kept) == ["2", "3", "4"]
    number, device.local = roll_back(device.books, None, device.local)
    assert (number, device.value) == (3, 3.0)
    assert device.exchange(tokens=0).taken_over is None
    device.learn(0.5)
    device.exchange()
    fleet.close()
    assert device.exchange(tokens=0).taken_over == 5


def test_freezing_the_inner_side_halves_what_is_sent_and_never_changes_it(make):
    fleet, (device,) = make(1, averaging="freeze-a")
    assert device.books.frozen() == {name for name in SHAPES if name.endswith("lora_a")}
    device.learn(1.0)
    outcome = device.exchange()
    assert outcome.bytes_sent < 0.6 * sum(4 * math.prod(shape) for shape in SHAPES.values())
    fleet.close()
    device.exchange(tokens=0)
    assert device.books.standing.reference[OUTER][0, 0] == 1.0
    assert device.reference == 0.0


def test_only_tensors_that_may_leave_are_in_the_books(make, tmp_path):
    _, (device,) = make(1)
    from comigs_edge.fleet.books import Books

    books = Books(device.folder, SHAPES | {"specialist.1.blk.0.ffn_gate.lora_a": (4, 64)}, dict, "ab" * 32, 0.1)
    assert set(books.pack(None).packed) == set(SHAPES)
