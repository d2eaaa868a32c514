"""What a device's commands do, killed before each change of its home and done again: all that it learned counts once."""

import os
import time

import pytest

from comigs_edge import files
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.home.folder import Home
from tests.coordinator.rig import Coordinator
from tests.fleet.killed import files_in, is_killed
from tests.fleet.owner import UNIT, Owner
from tests.fleet.rig import Device
from tests.fleet.test_exchange import settled
from tests.fleet.test_ordinary_life import newest


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    """Each update closes a round."""
    running = Coordinator(tmp_path_factory.mktemp("killed") / "data", update_format="float32", goal=1)
    first = Device(running.data.parent / "first").join_coordinator(running.invite())
    first.exchange(tokens=0)
    settled(running)
    yield running
    running.stop()


def tidy(root):
    """Its files, as the next command finds them an hour later."""
    for path in root.rglob(".*"):
        os.utime(path, (time.time() - 2 * files.DEAD,) * 2)
    files.remove_dead(root)
    return {name for name in files_in(root) if "/brought/" not in name and "/generalists/" not in name}


def each_kill(coordinator, tmp_path, prepare, command, end, step=1):
    """Kills `command` before its first change of a home, its second, ...; what counts is said by `prepare` and `end`."""
    expected, number, is_cut = newest(coordinator), 1 - step, True
    while is_cut:
        number += step
        owner = Owner(tmp_path / f"home-{number}", coordinator)
        link = coordinator.invite()
        learned = prepare(owner, link)
        is_cut = is_killed(owner.root, number, lambda: command(owner, link))  # noqa: B023
        if is_cut:
            command(owner, link)
        learned += end(owner)
        owner.sync_until_quiet()
        expected += learned * UNIT
        assert (number, newest(coordinator), owner.value) == (number, expected, expected)
        folder = FleetFolder(Home(owner.root))
        kept = {f"{int(each):06d}.safetensors" for each in folder.standing().kept}
        assert {path.name for path in (folder.root / "generalists").iterdir()} == kept
        assert {path.name for path in (folder.root / "brought").iterdir()} == set(folder.standing().brought)
        assert not {name for name in tidy(owner.root) if "/." in name or name.startswith((".", "left"))}
    return number


def joined(owner, link):
    owner.join(link)
    return 1


def synced(owner, link):
    owner.join(link)
    owner.sync_until_quiet()
    return 1


def learned_alone(owner, link):
    synced(owner, link)
    owner.learn()
    return 2


def quiet(_):
    return 0


def test_a_join_killed_anywhere_is_done_again_and_all_counts_once(coordinator, tmp_path):
    assert each_kill(coordinator, tmp_path, lambda *_: 1, Owner.join, quiet) > 4


@pytest.mark.parametrize(("prepare", "least", "step"), [(joined, 20, 1), (learned_alone, 15, 4)])
def test_a_sync_killed_anywhere_is_done_again_and_all_counts_once(coordinator, tmp_path, prepare, least, step):
    assert each_kill(coordinator, tmp_path, prepare, lambda owner, _: owner.sync(), quiet, step) > least


@pytest.mark.parametrize("prepare", [joined, synced, learned_alone])
def test_a_leave_killed_anywhere_is_done_again_and_all_counts_once(coordinator, tmp_path, prepare):
    def end(owner):
        owner.join(coordinator.invite())
        return 0

    assert each_kill(coordinator, tmp_path, prepare, lambda owner, _: owner.leave(), end) > 1


@pytest.mark.parametrize("prepare", [synced, learned_alone])
def test_a_rollback_killed_anywhere_is_done_again_and_all_counts_once(coordinator, tmp_path, prepare):
    def end(owner):  # the next generalist is taken over again
        device = Device(owner.root.with_name(f"{owner.root.name}-other")).join_coordinator(coordinator.invite())
        device.exchange(tokens=0)
        device.learn(UNIT)
        device.exchange()
        settled(coordinator)
        return 1

    assert each_kill(coordinator, tmp_path, prepare, lambda owner, _: owner.roll_back(), end, 2) > 3
