"""Adapters on disk, and the privacy line."""

import json
from dataclasses import replace

import numpy as np
import pytest

import profiles
from comigs_edge.arrays import digest
from comigs_edge.errors import ComigsError
from comigs_edge.home import versions as versions_on_disk
from comigs_edge.home.config import ModelConfig
from comigs_edge.home.versions import versions
from comigs_edge.nn.adapters import Adapters
from comigs_edge.planning.plan import parallel_width, plan_experts
from coordinator.protocol import wire
from coordinator.protocol.generalist import may_leave

CANARY = 1234.5


def leaving(arrays):
    return {name: array for name, array in arrays.items() if may_leave(name)}


@pytest.mark.parametrize("attention", [False, True])
def test_only_the_generalist_may_leave(make_adapters, attention):
    arrays = make_adapters(specialists=3, attention=attention).arrays()
    for name, array in arrays.items():
        if not name.startswith("generalist."):
            array.fill(CANARY)  # a canary in everything that must stay
    arrays |= {
        "exp_avg.generalist.blk.0.ffn_up.lora_a": np.full(4, CANARY, np.float32),
        "generalist.blk.0.ffn_up.lora_a.text": np.full(4, CANARY, np.float32),
        "generalist.blk.0.router": np.full(4, CANARY, np.float32),
        "specialist.1.generalist.blk.0.ffn_up.lora_a": np.full(4, CANARY, np.float32),
        "generalist.blk.٣.ffn_up.lora_a": np.full(4, CANARY, np.float32),
        "generalist.blk.0.ffn_up.lora_a\n": np.full(4, CANARY, np.float32),
    }
    sent = leaving(arrays)
    assert len(sent) == 2 * 2 * (7 if attention else 3)  # blocks, A and B, linear maps
    assert all(name.startswith("generalist.blk.") for name in sent)
    assert np.float32(CANARY).tobytes() not in wire.encode(sent)


def test_of_parallel_experts_too_only_the_generalist_may_leave(make_adapters):
    arrays = make_adapters(specialists=2, form="parallel").arrays() | {
        "generalist.blk.0.attn_q.weight": np.zeros(4, np.float32)
    }
    assert sorted(leaving(arrays)) == sorted(
        f"generalist.blk.{b}.ffn_{n}.weight" for b in range(2) for n in ("gate", "up", "down")
    )


@pytest.mark.parametrize("form", ["lora", "parallel"])
def test_of_experts_in_the_last_block_only_the_generalist_may_leave(make_adapters, form):
    sent = leaving(make_adapters(specialists=2, form=form, blocks=1).arrays())
    assert len(sent) == (6 if form == "lora" else 3)
    assert all(name.startswith("generalist.blk.1.ffn_") for name in sent)


def test_parallel_experts_have_about_as_many_weights_as_lora(tiny_base):
    # SmolLM2: LoRA of rank 8 has 3 * 8 * (576 + 1536) = 50,688 weights a block, a width of 32 has 3 * 32 * 576 = 55,296.
    assert parallel_width(8, replace(tiny_base.shape, width=576, ff_width=1536)) == 32
    assert parallel_width(16, replace(tiny_base.shape, width=576, ff_width=1536)) == 64
    assert parallel_width(1, tiny_base.shape) == 32


def test_more_blocks_than_the_base_has_are_refused(tiny_base):
    def blocks(number):
        return plan_experts(ModelConfig(specialists=1, blocks=number), profiles.load("laptop"), tiny_base.shape).blocks

    assert [blocks(number) for number in (None, 0, 2, 1)] == [0, 0, 0, 1]
    with pytest.raises(ComigsError, match=r"blocks = 3 and the base has 2; use at most so many, or 0 for all"):
        blocks(3)


def save(folder, adapters, **notes):
    return versions_on_disk.save(folder, adapters.arrays(), adapters.layout, "base-hash", notes)


def test_a_saved_version_loads_with_the_same_bits(tmp_path, tiny_base, make_adapters):
    adapters = make_adapters(2)
    assert save(tmp_path, adapters, validation_loss=1.5) == 1
    layout, arrays, manifest = versions_on_disk.load(tmp_path, tiny_base.shape, "base-hash")
    assert layout == adapters.layout
    assert digest(arrays) == digest(adapters.arrays()) == manifest["sha256"]
    assert manifest["validation_loss"] == 1.5
    assert oct((tmp_path / "0001").stat().st_mode)[-3:] == "700"
    assert oct((tmp_path / "0001" / "generalist.safetensors").stat().st_mode)[-3:] == "600"


def test_adapters_from_a_file_are_in_the_order_of_the_blocks(tiny_base, make_adapters):
    adapters = make_adapters(2)
    backwards = dict(reversed(adapters.arrays().items()))
    again = Adapters.from_arrays(adapters.layout, tiny_base.shape, backwards)
    assert list(again.named) == list(adapters.named)
    assert all(a is b for a, b in zip(again.group(router=True), again.routers, strict=True))


def test_the_last_three_versions_are_kept(tmp_path, make_adapters):
    for _ in range(5):
        save(tmp_path, make_adapters())
    assert versions(tmp_path) == [3, 4, 5]


def test_adapters_of_another_base_are_refused(tmp_path, tiny_base, make_adapters):
    save(tmp_path, make_adapters())
    with pytest.raises(ComigsError, match="another base"):
        versions_on_disk.load(tmp_path, tiny_base.shape, "other")


def test_damaged_adapters_are_refused(tmp_path, tiny_base, make_adapters):
    save(tmp_path, make_adapters())
    path = tmp_path / "0001" / "router.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ComigsError, match="damaged"):
        versions_on_disk.load(tmp_path, tiny_base.shape, "base-hash")


def test_what_a_killed_save_left_behind_is_cleaned_up(tmp_path, make_adapters):
    (tmp_path / ".0001").mkdir(parents=True)
    (tmp_path / ".0001" / "generalist.safetensors").write_bytes(b"half")
    save(tmp_path, make_adapters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001"]
    assert json.loads((tmp_path / "0001" / "manifest.json").read_bytes())["version"] == 1
