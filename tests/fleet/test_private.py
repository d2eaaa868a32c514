"""Private rounds between real homes and a real coordinator's process: what counts, and what is left of a window."""

import contextlib
import os
import threading
import time

import numpy as np
import pytest

from comigs_edge.errors import ComigsError
from comigs_edge.fleet.client import RemoteRefused
from comigs_edge.fleet.joining import join
from comigs_edge.home.moving import pack
from coordinator.protocol import compress, keys, wire
from coordinator.protocol.aggregate import add_change, mean_change
from coordinator.protocol.messages import Refusal
from tests.coordinator import rig
from tests.coordinator.rig import SHAPES, Coordinator, Member
from tests.fleet.rig import BASE, Device, step


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


def learn(devices):
    """Each something else, and all come by."""
    for number, device in enumerate(devices):
        device.learn(step(number))
    touch(devices, tokens=100)


def run_to(coordinator, devices, stage):
    """Devices come by until the first window is at this stage."""
    for _ in range(12):
        if coordinator.ask("status")["private"][0]["stage"] == stage:
            return
        touch(devices)
    raise AssertionError(coordinator.ask("status")["private"])


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


def test_a_device_that_trains_on_needs_three_touches_for_a_generalist(private, tmp_path):
    """One more to confirm and one more to answer than in a fleet that is not private; the next window is made meanwhile."""
    devices, newest = fleet_of(private, tmp_path, 3), []
    for number in range(11):
        for device in devices:
            device.learn(step(number))
            device.exchange(tokens=10)
        newest.append(private.until(lambda status: status["newest_round"] == status["open_round"] - 1)["newest_round"])
    first = newest.index(1)
    assert newest[-1] - 1 >= (len(newest) - 1 - first) // 3
    ids = [id for device in devices for id in device.books.standing.brought]
    assert len(ids) == len(set(ids)) >= 6


def test_one_that_vanishes_and_one_that_comes_late_cost_nobody_anything(tmp_path):
    private = Coordinator(tmp_path / "coordinator", private=True, deadline_seconds=12)
    try:
        devices = fleet_of(private, tmp_path, 5)
        learned = [step(number, 1 / 1024) for number in range(5)]
        for device, change in zip(devices, learned, strict=True):
            device.learn(change)
        touch(reversed(devices), tokens=100)
        run_to(private, devices[::-1], "masked")
        for device in devices[:4]:  # the fifth has given its shares, and is gone
            device.exchange(tokens=0)
        end = time.monotonic() + 60
        while private.ask("status")["newest_round"] < 1 and time.monotonic() < end:
            touch(devices[:4])
            time.sleep(0.2)
        assert private.rounds()[1]["devices"] == 4
        late = devices[4]
        assert late.exchange(tokens=0).taken_over == 1
        assert late.books.standing.unsent_tokens == 100
        for device in devices[:4]:
            device.learn(step(9, 1 / 1024))
        private.stop()
        private.flags = {"private": True}  # from now on a window waits for all
        private.restart()
        for _ in range(12):
            late.exchange(tokens=0)
            touch(devices[:4], tokens=10)
            private.until(lambda status: status["newest_round"] == status["open_round"] - 1)
        assert late.books.standing.brought
    finally:
        private.stop()


def test_a_coordinator_that_is_killed_goes_on_with_its_windows(private, tmp_path):
    devices, killed = fleet_of(private, tmp_path, 3), 0
    learn(devices)
    while private.ask("status")["newest_round"] < 1:
        stages = [each["stage"] for each in private.ask("status")["private"]]
        private.kill()
        private.restart()
        killed += 1
        assert [each["stage"] for each in private.ask("status")["private"]][: len(stages)] == stages or killed > 1
        for device in devices:
            device.open()
        touch(devices)
        private.until(lambda status: status["newest_round"] == status["open_round"] - 1)
    assert killed >= 2
    assert private.rounds()[1]["devices"] == 3
    touch(devices)
    assert [len(device.books.standing.brought) for device in devices] == [1, 1, 1]


def test_nothing_is_left_of_a_window_that_is_over(private, tmp_path):
    devices = fleet_of(private, tmp_path, 3)
    learn(devices)
    seeds = [path.read_text() for path in tmp_path.glob("home-*/fleet/windows/.*.seed")]
    assert len(seeds) == 3
    pack(devices[0].home, tmp_path / "home.tar", True, lambda done, total: None)
    publish(private, devices, 1)
    touch(devices)
    assert list(tmp_path.glob("home-*/fleet/windows/*")) == []
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not any(seed.encode() in everything or bytes.fromhex(seed) in everything for seed in seeds)
    assert [path.name for path in (private.data / "private").iterdir() if len(path.name) == 64] == []


def test_a_bound_that_the_owner_raises_costs_no_window(tmp_path):
    private = Coordinator(tmp_path / "coordinator", private=True, norm_bound=0.5)
    try:
        devices = fleet_of(private, tmp_path, 3)
        for number, device in enumerate(devices):
            device.learn(step(number, 1 / 8))  # far beyond both
        touch(devices, tokens=100)
        run_to(private, devices, "masked")
        private.stop()
        private.flags["norm_bound"] = 4
        private.restart()
        publish(private, devices, 1)
        assert not any("left a private window" in note for device in devices for note in device.folder.notes)
        assert "given up" not in (tmp_path / "coordinator.log").read_text()
        touch(devices)
        publish(private, devices, 3)
        norms = [np.sqrt(sum(np.square(change).sum() for change in changes(private, number))) for number in (1, 3)]
        assert norms[0] < 0.5 < norms[1]  # of means, which are shorter than what is in them
    finally:
        private.stop()


def changes(coordinator, number):
    before, after = generalist(coordinator, number - 1), generalist(coordinator, number)
    return [after[name] - before[name] for name in SHAPES]


def test_single_updates_are_refused_by_a_private_coordinator(private, tmp_path):
    fleet_of(private, tmp_path, 1)
    member = Member(private.invite())
    with pytest.raises(RemoteRefused, match="takes no single updates"):
        member.push(step(0))


def test_an_earlier_version_is_told_in_one_sentence_before_it_sends(private, monkeypatch):
    monkeypatch.setattr(compress, "MASKED", "float16")  # what versions before this one know
    with pytest.raises(ComigsError, match="which this version does not know; nothing is lost, upgrade comigs-edge"):
        Member(private.invite())


def test_a_fleet_becomes_private_and_what_waited_comes_in_a_sum(tmp_path):
    plain = Coordinator(tmp_path / "coordinator", goal=3)
    devices = fleet_of(plain, tmp_path, 3)
    for number, device in enumerate(devices[:2]):
        device.learn(step(number))
        device.exchange(tokens=100)  # to a round that waits for the third
    assert plain.ask("status")["updates"] == 2
    plain.stop()
    plain.flags = {"private": True}
    plain.restart()
    try:
        for device in devices:
            device.open()
        devices[2].learn(step(2))
        touch(devices, tokens=10)
        publish(plain, devices, 1)
        touch(devices)
        assert plain.rounds()[1]["devices"] == 3
        assert all(len(device.books.standing.brought) == 1 for device in devices)
    finally:
        plain.stop()


def test_masked_updates_that_arrive_together_on_a_slow_disk_all_stay(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import time\nfrom coordinator.ledger import private\nsync = private.sync_folder\n"
        "private.sync_folder = lambda folder: (time.sleep(1.5), sync(folder))\n"
    )
    path = os.pathsep.join([str(site), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    private = Coordinator(tmp_path / "coordinator", private=True, environment={"PYTHONPATH": path})
    try:
        devices = fleet_of(private, tmp_path, 3)
        learn(devices)
        run_to(private, devices, "masked")
        threads = [threading.Thread(target=device.exchange, kwargs={"tokens": 0}) for device in devices]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len([each for each in (private.data / "private").iterdir() if len(each.name) == 64]) == 3
        publish(private, devices, 1)
    finally:
        private.stop()


def test_after_a_roll_back_what_counted_in_a_private_round_comes_again(private, tmp_path):
    devices = fleet_of(private, tmp_path, 3)
    learn(devices)
    publish(private, devices, 1)
    touch(devices)
    summed = [each["number"] for each in private.rounds() if each["devices"] == 3]
    assert [list(device.books.standing.brought.values()) for device in devices] == [summed] * 3
    with contextlib.suppress(RemoteRefused):  # it went back already
        for device in devices:
            device.transport.refuse(Refusal(round=1))
    touch(devices)
    assert private.rounds()[2]["rolled_back_to"] == 0
    assert [device.books.standing.unsent_tokens for device in devices] == [100] * 3
    for device in devices:
        device.learn(1 / 4096)
    touch(devices, tokens=10)
    publish(private, devices, 3)
    before, after = generalist(private, 2), generalist(private, 3)
    for name in SHAPES:
        mean = sum(step(number)[name] for number in range(3)) / 3 + 1 / 4096
        assert np.allclose(after[name] - before[name], mean, atol=1e-4), name


def test_who_leaves_during_a_window_and_joins_again_counts_once(private, tmp_path):
    devices = fleet_of(private, tmp_path, 4)
    learn(devices)
    run_to(private, devices, "masked")
    touch(devices)
    left = devices[3]
    sent = left.folder.outbox().id
    left.folder.leave()
    assert list(tmp_path.glob("home-3/left/*/windows/.*")) == []
    join(left.home, private.invite(), None, rig.generalist(base=BASE))
    left.open()
    left.exchange(tokens=0)
    assert left.folder.outbox().id == sent
    assert not left.folder.was_rejected
    publish(private, devices[:3], 1)
    left.exchange(tokens=0)
    assert list(left.books.standing.brought) == [sent]
    assert left.books.standing.unsent_tokens == 0
