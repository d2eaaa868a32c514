"""Private rounds between real homes and a real coordinator's process: what counts, and what is left of a window."""

import numpy as np
import pytest

from coordinator.protocol import compress, keys, wire
from coordinator.protocol.aggregate import add_change, mean_change
from tests.coordinator.rig import SHAPES, Coordinator, random_arrays
from tests.fleet.rig import Device


@pytest.fixture
def private(tmp_path):
    """A private coordinator."""
    running = Coordinator(tmp_path / "coordinator", private=True)
    yield running
    if running.process.poll() is None:
        running.stop()


def fleet_of(coordinator, tmp_path, count):
    """Devices with generalist 0, which have learned nothing."""
    devices = [Device(tmp_path / f"home-{number}").join_coordinator(coordinator.invite()) for number in range(count)]
    devices[0].exchange(tokens=0)
    coordinator.until(lambda status: status["newest_round"] == 0)
    for device in devices:
        device.exchange(tokens=0)
    return devices


def touch(devices, tokens=0):
    return [device.exchange(tokens=tokens) for device in devices]


def step(number, scale=1 / 64):
    return {name: (array * scale).astype(np.float32) for name, array in random_arrays(number).items()}


def generalist(coordinator, number):
    sha256 = coordinator.rounds()[number]["sha256"]
    return wire.decode((coordinator.data / "payloads" / sha256).read_bytes(), "a generalist")


def publish(coordinator, devices, number, limit=12):
    """Devices come by until a generalist is published; returns how often all had to."""
    for touches in range(1, limit):
        touch(devices)
        if coordinator.ask("status")["open_round"] > number:
            coordinator.until(lambda status: status["newest_round"] >= number)
            return touches
    raise AssertionError(coordinator.ask("status"))


def test_a_private_mean_has_the_bits_of_the_plain_one_and_no_update_arrives(private, tmp_path):
    devices = fleet_of(private, tmp_path, 4)
    changes = [step(number) for number in range(4)]
    for device, change in zip(devices, changes, strict=True):
        device.learn(change)
    touch(devices, tokens=100)
    publish(private, devices, 1)
    sent = [compress.unpack(compress.pack(change, "float16"), SHAPES, "float16") for change in changes]
    before = generalist(private, 0)
    expected = add_change(before, mean_change(before, [(each, 1 << 16) for each in sent]))
    found = generalist(private, 1)
    for name in SHAPES:
        assert np.array_equal(found[name], expected[name]), name
    assert private.rounds()[1]["devices"] == 4
    touch(devices)
    for device, change in zip(devices, sent, strict=True):
        assert device.books.standing.trained_from == 1
        assert len(device.books.standing.brought) == 1
        assert not np.array_equal(device.books.standing.on_top["generalist.blk.0.ffn_gate.lora_a"], change)
    assert keys.open_manifest(devices[0].transport.state().newest, devices[0].books.membership.signing_key).devices == 4
