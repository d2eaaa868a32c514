"""Generalist 0 is an initial one, and what a device learned before it joined comes as its first update."""

import numpy as np
import pytest

from coordinator.protocol import wire
from tests.coordinator.rig import Coordinator, arrays, random_arrays
from tests.fleet.rig import NAME, Device, scaled

INITIAL = scaled(random_arrays(7), 0.01)
ANOTHER = scaled(random_arrays(8), 0.01)


@pytest.fixture
def join(tmp_path, fleet):
    def make(name, initial=INITIAL, learned=None):
        device = Device(tmp_path / name)
        device.initial = device.local = initial
        if learned is not None:
            device.learn(learned)
        return device.join_folder(fleet, name)

    return make


def change(fleet, number):
    """What a round has added to the weight that is looked at."""
    return float(fleet.arrays(number)[NAME][0, 0] - fleet.arrays(number - 1)[NAME][0, 0])


def test_the_first_generalist_is_the_initial_one_and_holds_nothing_that_was_learned(fleet, join):
    device = join("first", learned=3.0)
    outcome = device.exchange(tokens=0)
    assert outcome.taken_over is None
    fleet.close()
    for name, array in fleet.arrays(0).items():
        np.testing.assert_allclose(array, INITIAL[name], rtol=0, atol=2**-29)  # one rounding of the fixed point


def test_what_the_first_device_learned_before_comes_as_its_first_update(fleet, join):
    device = join("first", learned=3.0)
    device.exchange(tokens=0)
    fleet.close()
    outcome = device.exchange(tokens=0)
    assert outcome.taken_over == 0
    assert device.value == pytest.approx(INITIAL[NAME][0, 0] + 3.0)
    fleet.close()
    assert change(fleet, 1) == pytest.approx(3.0)
    device.exchange(tokens=0)
    assert device.value == pytest.approx(INITIAL[NAME][0, 0] + 3.0)  # and not twice


def test_a_device_that_has_learned_nothing_sends_nothing_more(fleet, join):
    device = join("first")
    device.exchange(tokens=0)
    fleet.close()
    for _ in range(2):
        device.exchange(tokens=0)
        assert fleet.updates == {}


def test_a_late_joiner_keeps_what_it_has_learned_on_top_of_the_fleets_generalist(fleet, join):
    first = join("first", learned=1.0)
    for _ in range(2):
        first.exchange(tokens=0)
        fleet.close()
    late = join("late", learned=0.5)
    assert late.exchange(tokens=0).taken_over == 1
    assert late.value == pytest.approx(INITIAL[NAME][0, 0] + 1.5)
    fleet.close()
    assert change(fleet, 2) == pytest.approx(0.5)


def test_two_devices_that_learned_alone_are_averaged_from_the_same_start(fleet, join):
    first, second = join("first", learned=1.0), join("second", learned=3.0)
    for device in (first, second):
        device.exchange(tokens=0)  # both bring the initial generalist
    fleet.close()
    for device in (first, second):
        device.exchange(tokens=0)
    fleet.close()
    assert change(fleet, 1) == pytest.approx(2.0)


def test_a_late_joiner_that_began_elsewhere_puts_what_it_learned_on_top_too(fleet, join):
    join("first").exchange(tokens=0)
    fleet.close()
    late = join("late", initial=ANOTHER, learned=2.0)
    late.exchange(tokens=0)
    assert late.value == pytest.approx(INITIAL[NAME][0, 0] + 2.0)
    fleet.close()
    assert change(fleet, 1) == pytest.approx(2.0)


def test_a_generalist_that_was_in_a_fleet_before_is_not_added_to_it_again(fleet, join):
    first = join("first", learned=1.0)
    for _ in range(3):
        first.exchange(tokens=0)
        fleet.close()
    mark = first.books.mark
    again = join("again")
    again.local = again.books.resume(first.local, f"before{mark}")  # left, and joined once more
    again.exchange(tokens=0)
    assert again.value == pytest.approx(INITIAL[NAME][0, 0] + 1.0)
    assert fleet.updates == {}


def test_a_training_that_began_before_the_fleet_was_reached_keeps_its_progress(fleet, join):
    device = join("first", learned=1.0)
    mark = device.books.mark  # of a checkpoint that was saved while the fleet was away
    device.open()
    device.local = device.books.resume(device.local, mark)
    join("other").exchange(tokens=0)
    fleet.close()
    device.exchange(tokens=0)
    assert device.value == pytest.approx(INITIAL[NAME][0, 0] + 1.0)


def test_tokens_trained_on_before_the_fleet_was_reached_are_not_forgotten(fleet, join):
    from tests.fleet.test_books import offline

    device = join("first")
    exchange, device.transport.exchange = device.transport.exchange, offline
    device.learn(1.0)
    assert device.exchange(tokens=640).waits
    device.transport.exchange = exchange
    device.open()
    device.exchange(tokens=0)
    fleet.close()
    device.exchange(tokens=0)
    assert fleet.updates["first"].tokens == 640


def test_over_http_too_a_late_joiner_knows_that_the_fleet_began_where_it_did(tmp_path):
    coordinator = Coordinator(tmp_path / "data", update_format="float32")
    try:
        values = []
        for name, learned in (("first", 1.0), ("late", 0.5)):
            device = Device(tmp_path / name)
            device.initial = device.local = INITIAL
            device.learn(learned)
            device.join_coordinator(coordinator.invite())
            for _ in range(2):
                device.exchange(tokens=0)
                coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1)
            values.append(device.value - float(INITIAL[NAME][0, 0]))
        assert values == pytest.approx([1.0, 1.5])
        zero = wire.decode((coordinator.data / "payloads" / coordinator.rounds()[0]["sha256"]).read_bytes(), "0")
        assert zero[NAME][0, 0] == pytest.approx(INITIAL[NAME][0, 0], abs=2**-29)
    finally:
        coordinator.stop()


def test_a_fleet_whose_first_generalist_was_a_devices_own_continues_as_it_was(fleet, join):
    """As versions before made it: round 0 took a trained generalist."""
    from comigs_edge.fleet.standing import Sealed

    old = Sealed(
        id="00cc", trained_from=-1, tokens=640, update_format="float32", averaging="separate", validation_loss=None,
        packed=arrays(2.0),
    )  # fmt: skip
    device = join("first")
    device.folder.seal(old)
    device.folder.mark_tried()
    device.local = arrays(2.0)
    device.exchange(tokens=0)
    fleet.close()
    assert fleet.arrays(0)[NAME][0, 0] == 2.0
    outcome = device.exchange(tokens=0)
    assert (outcome.taken_over, device.value, fleet.updates) == (0, 2.0, {})
