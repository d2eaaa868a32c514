"""The zero expert: one more choice of the router, which adds nothing."""

import pytest
import torch

from comigs_edge.arrays import digest
from comigs_edge.errors import ComigsError
from comigs_edge.nn import reference
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.lora import LoRA, LoRAExpert
from comigs_edge.nn.lora_form import LORA
from comigs_edge.nn.merged_mlp import frozen_mlp
from comigs_edge.nn.model import Model
from comigs_edge.nn.parallel import ParallelExpert, small_experts
from comigs_edge.nn.routing import route
from tests.nn.parts import assert_near, fresh_pass, parallel_experts, random_parts, value_and_gradients


def layout(specialists, k=2, form="parallel"):
    width = 32 if form == "parallel" else 0
    return ExpertsConfig(specialists, experts_per_token=k, form=form, expert_width=width, zero_expert=True)


@pytest.mark.parametrize(("experts", "k"), [(1, 2), (2, 2), (2, 3)])
def test_a_zero_expert_equals_an_expert_whose_matrices_are_zero(experts, k):
    x, router, mlp, _ = random_parts(experts + 1, tokens=11, width=64, ff_width=96, dtype=torch.float32)
    each = parallel_experts(experts, 64, 32, torch.float32)
    nothing = ParallelExpert(*(torch.zeros_like(matrix) for matrix in each[0]))
    leaves = [x, router, *(matrix for expert in each for matrix in expert)]

    def fast():
        return frozen_mlp(x, mlp, fresh_pass()) + small_experts(x, each, route(x @ router.T, k).weights, 4.0, None)

    def slow():
        return reference.mix_parallel(x, mlp, [*each, nothing], route(x @ router.T, k).weights, 4.0)

    assert_near(*[value_and_gradients(function, leaves) for function in (fast, slow)], 2e-5)


@pytest.mark.parametrize("name", [None, "Q8_0", "Q4_0"])
@pytest.mark.parametrize(("experts", "k"), [(1, 2), (2, 2), (2, 3)])
def test_beside_lora_experts_it_equals_an_expert_without_updates(experts, k, name):
    x, router, mlp, each = random_parts(experts + 1, tokens=11, width=64, ff_width=96, dtype=torch.float32)
    each, nothing = each[:experts], LoRAExpert(*(LoRA(*(torch.zeros_like(half) for half in update)) for update in each[-1]))
    leaves = [x, router, *(half for expert in each for update in expert for half in update)]
    purpose = fresh_pass()._replace(block_format=name)

    def fast():
        return LORA.mix(torch.zeros_like(x), x, mlp, each, route(x @ router.T, k), 4.0, purpose)

    def slow():
        return reference.mix_lora(x, mlp, [*each, nothing], route(x @ router.T, k).weights, 4.0, name)

    assert_near(*[value_and_gradients(function, leaves) for function in (fast, slow)], 2e-5)


@pytest.mark.parametrize("form", ["lora", "parallel"])
@pytest.mark.parametrize("specialists", [0, 1, 2])
def test_where_the_router_chooses_the_zero_expert_the_model_is_the_base(tiny_base, specialists, form):
    adapters = Adapters.initial(layout(specialists, form=form), tiny_base.hparams, seed=0)
    model, token, inputs = Model(tiny_base, adapters), torch.tensor([[50]]), []
    with torch.no_grad():
        expected = Model(tiny_base, None)(token).hidden
        model.watch = lambda block, normed, routing: inputs.append(normed)
        model(token)  # the start is the base: these are its inputs
        model.watch = None
        for tensor in adapters.group(router=False):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
        assert (model(token).hidden - expected).abs().max() > 0.1
        for router, normed in zip(adapters.group(router=True), inputs, strict=True):
            assert router.shape == (specialists + 2, tiny_base.hparams.width)
            router[-1] = 100 * normed[0]
        torch.testing.assert_close(model(token).hidden, expected)


@pytest.mark.parametrize("specialists", [0, 1, 2])
def test_a_zero_expert_is_added_and_taken_away_without_a_change_to_the_others(tiny_base, specialists):
    plain = ExpertsConfig(specialists, experts_per_token=min(2, specialists + 1), form="parallel", expert_width=32)
    before = Adapters.initial(plain, tiny_base.hparams, seed=3)
    with_zero = before.with_zero(seed=5)
    assert with_zero.layout == layout(specialists)
    assert with_zero.generalist().keys() == before.generalist().keys()  # what a fleet sees stays as it is
    after = with_zero.without_zero()
    assert after.layout == plain
    assert after.named.keys() == before.named.keys()
    for name, tensor in before.named.items():
        assert torch.equal(after.named[name], tensor)
    routers = with_zero.group(router=True)
    routers[0][0] += 1  # a router of its own
    assert digest(before.arrays()) == digest(Adapters.initial(plain, tiny_base.hparams, seed=3).arrays())


def test_without_a_zero_expert_every_tensor_is_as_before(tiny_base):
    before = Adapters.initial(ExpertsConfig(1, form="parallel", expert_width=32), tiny_base.hparams, seed=3)
    with_zero = Adapters.initial(layout(1), tiny_base.hparams, seed=3)
    for name, tensor in before.named.items():
        if not name.startswith("router."):
            assert torch.equal(with_zero.named[name], tensor)
    with pytest.raises(ComigsError, match="experts_per_token = 1"):
        Adapters.initial(layout(0, k=1), tiny_base.hparams, seed=0)
