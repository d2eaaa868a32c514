"""Versions of the adapters on disk."""

import json

import pytest

from comigs_edge.arrays import digest
from comigs_edge.errors import ComigsError
from comigs_edge.home import versions as versions_on_disk
from comigs_edge.home.versions import versions


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


def test_the_last_three_versions_are_kept(tmp_path, make_adapters):
    for _ in range(5):
        save(tmp_path, make_adapters())
    assert versions(tmp_path) == [3, 4, 5]


def test_adapters_of_another_base_are_refused(tmp_path, tiny_base, make_adapters):
    save(tmp_path, make_adapters())
    with pytest.raises(ComigsError, match="another base"):
        versions_on_disk.load(tmp_path, tiny_base.hparams, "other")


def test_damaged_adapters_are_refused(tmp_path, tiny_base, make_adapters):
    save(tmp_path, make_adapters())
    path = tmp_path / "0001" / "router.safetensors"
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
