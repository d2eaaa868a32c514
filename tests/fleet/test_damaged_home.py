"""A file of a device's home that is damaged or another device's: it says so, and nothing that was learned is dropped."""

import shutil
from itertools import product

import pytest

from comigs_edge.errors import ComigsError
from tests.coordinator.rig import Coordinator
from tests.fleet.owner import UNIT, Owner
from tests.fleet.test_ordinary_life import newest


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    """Each update closes a round."""
    running = Coordinator(tmp_path_factory.mktemp("damaged") / "data", update_format="float32", goal=1)
    yield running
    running.stop()


def cut(path, _):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path, _):
    path.write_bytes(bytes(path.stat().st_size))


def folder(path, _):
    path.unlink()
    path.mkdir()


def anothers(path, other):
    shutil.copy(other, path)


@pytest.fixture
def pair(coordinator, tmp_path):
    """Two devices in the fleet, the first with what the fleet has not received; and what both have learned."""
    before = newest(coordinator) if len(coordinator.rounds()) > 1 else 0
    owners = first, second = [Owner(tmp_path / name, coordinator) for name in ("first", "second")]
    for owner in (*owners, *owners):
        if not (owner.root / "fleet").exists():
            owner.join(coordinator.invite())
        owner.sync_until_quiet()
    first.learn()
    second.learn()
    second.sync_until_quiet()
    assert newest(coordinator) == before + 3 * UNIT
    return first, second, before + 4 * UNIT


@pytest.mark.parametrize(("name", "damage"), [
    *product(("standing.safetensors", "standing.json", "generalists"), (cut, zeros, folder, anothers)),
    *product(("membership.json",), (cut, zeros, folder)),
])  # fmt: skip
def test_a_damaged_file_of_the_fleets_is_said_and_what_was_learned_comes(coordinator, pair, name, damage):
    first, second, learned = pair
    path, other = first.root / "fleet" / name, second.root / "fleet" / name
    if name == "generalists":
        path, other = max(path.iterdir()), min(other.iterdir())
    damage(path, other)
    first.sync_until_quiet()
    assert (first.value, newest(coordinator)) == (learned, learned)
    assert first.said or (name == "standing.json" and damage is not folder)
    assert all(path.stem in sentence or str(int(path.stem)) in sentence for sentence in first.said)


@pytest.mark.parametrize(("name", "damage"), [
    *product(("device.key",), (cut, zeros, folder, anothers)), ("fleet/membership.json", anothers),
])  # fmt: skip
def test_a_damaged_key_is_said_with_the_remedy_and_what_was_learned_waits(coordinator, pair, name, damage):
    first, second, learned = pair
    key = first.root / name
    kept = key.read_bytes()
    damage(key, second.root / name)
    with pytest.raises(ComigsError, match=r"device.key .*join again: comigs-edge join LINK"):
        first.sync()
    if key.is_dir():
        key.rmdir()
    key.write_bytes(kept)
    first.sync_until_quiet()
    assert (first.value, newest(coordinator)) == (learned, learned)
