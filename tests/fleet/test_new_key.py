"""A home that joins with another key: a copied card, and a device whose key was lost; with a real coordinator."""

import json
import shutil

import pytest

from comigs_edge.fleet.client import RemoteRefused
from tests.coordinator.rig import Coordinator
from tests.fleet.rig import Device
from tests.fleet.test_exchange import settled
from tests.fleet.test_membership import join_again, member
from tests.fleet.test_ordinary_life import exchange_until_quiet, newest
from tests.fleet.test_tokens import counted, sync_until_quiet


@pytest.fixture
def pair(tmp_path):
    """A coordinator whose rounds want two updates, and two devices in the first round; what the first brings is in the second."""
    coordinator = Coordinator(tmp_path / "data", update_format="float32", goal=2)
    devices = [member(coordinator, tmp_path / name, name) for name in ("first", "second")]
    devices[1].exchange(tokens=0)
    settled(coordinator)
    for device in devices:
        device.exchange(tokens=0)
    yield coordinator, *devices
    coordinator.stop()


def copy_of(device, root):
    """Its card, copied, without the key."""
    shutil.copytree(device.folder.root.parent, root)
    (root / "device.key").unlink()
    copy = Device(root)
    copy.local, copy.transport = dict(device.local), device.transport
    copy.open()
    return copy


def close_with(device, coordinator, value=2.0):
    device.learn(value)
    device.exchange(tokens=1)
    return settled(coordinator)


@pytest.mark.parametrize("is_revoked", [False, True])
def test_a_copied_card_brings_nothing_again_however_often_it_joins(pair, tmp_path, is_revoked):
    coordinator, first, second = pair
    first.learn(2.0)
    assert first.exchange(tokens=100).receipts
    close_with(second, coordinator)
    first.exchange(tokens=0)
    copy = copy_of(first, tmp_path / "copy")
    join_again(coordinator, copy, "copy")
    copy.exchange(tokens=0)
    if is_revoked:
        coordinator.ask("revoke", name="copy")
    join_again(coordinator, copy, "copy")
    exchange_until_quiet(coordinator, first, copy, second)
    assert copy.folder.outbox() is None
    assert copy.books.standing.unsent_tokens == 0
    assert (counted(coordinator), newest(coordinator)) == (101, 2.0)


@pytest.mark.parametrize("name", ["first", "other"])
@pytest.mark.parametrize("has_left", [False, True])
def test_a_removed_device_with_a_new_key_brings_what_its_removal_dropped_once(pair, name, has_left):
    coordinator, first, second = pair
    first.learn(2.0)
    first.exchange(tokens=100)
    close_with(second, coordinator)
    for device in (first, second):
        device.exchange(tokens=0)
    first.learn(2.0)
    assert first.exchange(tokens=50).receipts
    first.folder.key_file.unlink()
    coordinator.ask("revoke", name="first")
    if has_left:
        first.folder.leave()
    for _ in range(3):
        join_again(coordinator, first, name)
    assert first.books.standing.unsent_tokens == 50
    first.exchange(tokens=0)
    join_again(coordinator, first, name)
    close_with(second, coordinator)
    exchange_until_quiet(coordinator, first, second)
    assert counted(coordinator) == 100 + 50 + 2
    assert newest(coordinator) == 4.0
    assert first.value == 4.0


def test_the_place_of_a_removed_device_is_taken_once_and_its_old_key_is_told(pair, tmp_path):
    coordinator, first, _ = pair
    first.learn(2.0)
    first.exchange(tokens=100)
    copies = [copy_of(first, tmp_path / name) for name in ("one", "two")]
    coordinator.ask("revoke", name="first")
    for copy in copies:
        join_again(coordinator, copy)
    assert [copy.books.standing.unsent_tokens for copy in copies] == [100, 0]
    with pytest.raises(RemoteRefused, match="device-1 took this key's place"):
        join_again(coordinator, first)


def test_an_update_that_came_with_the_lost_key_and_has_no_receipt_counts_once(pair, monkeypatch):
    coordinator, first, second = pair
    first.learn(2.0)
    real = first.transport.commit

    def lossy(wish):
        real(wish)
        raise RemoteRefused("stale_epoch", "the receipt is lost")

    monkeypatch.setattr(first.transport, "commit", lossy)
    with pytest.raises(RemoteRefused):
        first.exchange(tokens=100)
    close_with(second, coordinator)
    first.folder.key_file.unlink()
    coordinator.ask("revoke", name="first")
    join_again(coordinator, first, "first")
    exchange_until_quiet(coordinator, first, second)
    assert (counted(coordinator), newest(coordinator)) == (101, 2.0)


def test_a_lost_key_without_a_removal_is_told_what_it_costs(run, ready, coordinator):
    run("join", coordinator.invite("pi"))
    run("train", "--steps", 2)
    sync_until_quiet(run, coordinator)
    before = counted(coordinator)
    (ready / "device.key").unlink()
    said = run("join", coordinator.invite("again")).stderr.replace("\n", " ")
    assert "stays that device's" in said
    assert "comigs-coordinator revoke NAME" in said
    assert "stays" not in run("join", coordinator.invite("again")).stderr
    run("sync")
    assert counted(coordinator) == before
    assert json.loads(run("sync", "--json").stdout)["waits"] is False


def test_a_device_in_the_place_of_a_removed_one_stays_there_over_a_restart(pair):
    coordinator, first, second = pair
    first.learn(2.0)
    first.exchange(tokens=100)
    close_with(second, coordinator)
    former = first.folder.membership().device
    first.folder.key_file.unlink()
    coordinator.ask("revoke", name="first")
    join_again(coordinator, first, "first")
    counted_before = first.transport.state().counted
    port = coordinator.port
    coordinator.stop()
    assert coordinator.command("check")["damaged"] == []
    coordinator.start(port)
    assert first.transport.state().counted == counted_before != []
    assert former not in counted_before
