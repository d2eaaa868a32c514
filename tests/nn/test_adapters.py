"""What adapters look like, how they start, and what of them may leave the device."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import FORMS, ExpertsConfig, expected_shapes
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
    arrays = make_adapters(specialists=2, form="parallel").arrays() | {"generalist.blk.0.attn_q.weight": np.zeros(4, np.float32)}
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
    width = FORMS["parallel"].width
    assert width(None, 8, replace(tiny_base.hparams, width=576, ff_width=1536)) == 32
    assert width(None, 16, replace(tiny_base.hparams, width=576, ff_width=1536)) == 64
    assert width(None, 1, tiny_base.hparams) == 32
    assert width(48, 1, tiny_base.hparams) == 48


@pytest.mark.parametrize("form", FORMS)
def test_a_form_names_the_tensors_that_it_starts_and_views_each_once(tiny_base, form):
    layout = ExpertsConfig(form=form, expert_width=32)
    shapes = FORMS[form].starts(layout, tiny_base.hparams)
    assert tuple(shapes) == FORMS[form].names
    tensors = [torch.zeros(start.size) for start in shapes.values()]
    flat = [t for part in FORMS[form].view(tensors) for t in ([part] if torch.is_tensor(part) else part)]
    assert [id(tensor) for tensor in flat] == [id(tensor) for tensor in tensors]


def test_adapters_from_a_file_are_in_the_order_of_the_blocks(tiny_base, make_adapters):
    adapters = make_adapters(2)
    backwards = dict(reversed(adapters.arrays().items()))
    again = Adapters.from_arrays(adapters.layout, tiny_base.hparams, backwards)
    assert list(again.named) == list(adapters.named)
    assert all(a is b for a, b in zip(again.group(router=True), again.routers, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_the_tensors_of_every_form_may_leave_as_the_generalists(form):
    assert all(may_leave(f"generalist.blk.0.{name}") for name in FORMS[form].names)


@pytest.mark.parametrize("form", FORMS)
def test_new_adapters_change_nothing_and_any_changed_zero_shows(tiny_base, form):
    layout = ExpertsConfig(2, 4, 8.0, 2, True, form, 32)
    adapters = Adapters.initial(layout, tiny_base.hparams, 0)
    assert set(adapters.named) == set(expected_shapes(layout, tiny_base.hparams))
    zero = [name for name, tensor in adapters.named.items() if not tensor.any()]
    assert {name.split(".blk.0.")[1] for name in zero if name.startswith("specialist.2.blk.0")} == (
        {f"ffn_{name}.lora_b" for name in ("gate", "up", "down")} if form == "lora" else {"ffn_down.weight"}
    )
    assert adapters.is_initial
    for name in zero:
        adapters.named[name][0, 0] = 1.0
        assert not adapters.is_initial
        adapters.named[name][0, 0] = 0.0


@pytest.mark.parametrize("form", FORMS)
def test_experts_and_routers_are_drawn_as_wide_as_was_measured(tiny_base, form):
    layout = ExpertsConfig(3, 8, 16.0, 2, False, form, 32)
    named = Adapters.initial(layout, tiny_base.hparams, 0).named
    drawn = {name: tensor for name, tensor in named.items() if tensor.any()}
    assert len({float(tensor[0, 0]) for tensor in drawn.values()}) == len(drawn)  # each draws for itself
    other = Adapters.initial(layout, tiny_base.hparams, 1).named
    assert not any(torch.equal(tensor, other[name]) for name, tensor in drawn.items())
    for name, tensor in drawn.items():
        if name.startswith("router."):
            assert tensor.std() == pytest.approx(0.02, rel=0.15)
            continue
        bound = torch.nn.init.kaiming_uniform_(torch.empty(10_000, tensor.shape[1]), math.sqrt(5)).max()
        assert tensor.abs().max() == pytest.approx(float(bound) * (1 if form == "lora" else 3), rel=0.02)


def test_what_an_expert_adds_has_the_factor_that_others_in_a_fleet_have():
    assert ExpertsConfig(rank=16, alpha=16.0).expert_scale == 4.0  # alpha / sqrt(rank)
    assert ExpertsConfig(form="parallel", expert_width=32).expert_scale == 4.0
    assert ExpertsConfig(form="parallel", expert_width=32, alpha=1.0).expert_scale == 4.0
