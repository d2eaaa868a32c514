"""Versions of the adapters on disk."""

import json

import pytest

from comigs_edge.arrays import digest
from comigs_edge.errors import ComigsError
from comigs_edge.home import versions as versions_on_disk
from comigs_edge.home.versions import versions
from tests.fleet.killed import is_killed


def save(folder, adapters, **notes):
    return versions_on_disk.save(folder, adapters.arrays(), adapters.layout, "base-hash", notes)


def test_a_saved_version_loads_with_the_same_bits(tmp_path, tiny_base, make_adapters):
    adapters = make_adapters(2)
    assert save(tmp_path, adapters, validation_loss=1.5) == 1
    layout, arrays, manifest, shared = versions_on_disk.load(tmp_path, tiny_base.hparams, "base-hash")
    assert shared is arrays
    assert layout == adapters.layout
    assert digest(arrays) == digest(adapters.arrays()) == manifest["sha256"]
    assert manifest["validation_loss"] == 1.5
    assert oct((tmp_path / "0001").stat().st_mode)[-3:] == "700"
    assert oct((tmp_path / "0001" / "generalist.safetensors").stat().st_mode)[-3:] == "600"


def save_another(folder, adapters):
    """A version of another content than those before."""
    next(iter(adapters.named.values())).add_(1)
    return save(folder, adapters)


def test_the_last_five_versions_are_kept(tmp_path, make_adapters):
    adapters = make_adapters()
    for _ in range(7):
        save_another(tmp_path, adapters)
    assert versions(tmp_path) == [3, 4, 5, 6, 7]


def test_going_to_and_fro_between_versions_drops_no_other(tmp_path, tiny_base, make_adapters):
    adapters = make_adapters()
    for _ in range(5):
        save_another(tmp_path, adapters)
    for version in (1, 5, 2, 1, 5, 2, 1):
        versions_on_disk.use(tmp_path, tiny_base.hparams, "base-hash", version)
    assert set(versions(tmp_path)) >= {1, 2, 3, 4, 5}
    assert len(versions(tmp_path)) == 8  # each of the three that were used, once more
    for _ in range(4):  # four trainings later the five contents that were used last are left, the first of them as its copy
        save_another(tmp_path, adapters)
    assert len({versions_on_disk.read_manifest(tmp_path, each)["sha256"] for each in versions(tmp_path)}) == 5


@pytest.mark.parametrize("action", ["use", "remove"])
def test_a_kill_anywhere_leaves_every_version_whole(tmp_path, tiny_base, make_adapters, action):
    adapters, number, is_cut = make_adapters(), 0, True
    while is_cut:
        number += 1
        folder = tmp_path / str(number)
        for _ in range(3):
            save_another(folder, adapters)
        act = {
            "use": lambda: versions_on_disk.use(folder, tiny_base.hparams, "base-hash", 1),  # noqa: B023
            "remove": lambda: versions_on_disk.remove(folder, [2]),  # noqa: B023
        }[action]
        is_cut = is_killed(folder, number, act)
        left = versions(folder)
        assert set(left) >= {1, 3}
        for version in left:
            versions_on_disk.load(folder, tiny_base.hparams, "base-hash", version)
        if is_cut and left != [1, 3]:
            act()
        assert left[-1] == 3 or action == "use"
        save_another(folder, adapters)
        assert not list(folder.glob(".*"))
    assert number > 2


def test_adapters_of_another_base_are_refused(tmp_path, tiny_base, make_adapters):
    save(tmp_path, make_adapters())
    with pytest.raises(ComigsError, match="another base"):
        versions_on_disk.load(tmp_path, tiny_base.hparams, "other")


@pytest.mark.parametrize("name", ["router.safetensors", versions_on_disk.SHARED])
def test_adapters_are_refused_whether_they_or_what_is_shared_of_them_is_damaged(tmp_path, tiny_base, make_adapters, name):
    adapters = make_adapters()
    versions_on_disk.save(tmp_path, adapters.arrays(), adapters.layout, "base-hash", {}, shared=adapters.arrays())
    path = tmp_path / "0001" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ComigsError, match="damaged"):
        versions_on_disk.load(tmp_path, tiny_base.hparams, "base-hash")


def test_what_a_killed_save_left_behind_is_cleaned_up(tmp_path, make_adapters):
    (tmp_path / ".0001").mkdir(parents=True)
    (tmp_path / ".0001" / "generalist.safetensors").write_bytes(b"half")
    save(tmp_path, make_adapters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001"]
    assert json.loads((tmp_path / "0001" / "manifest.json").read_bytes())["version"] == 1
