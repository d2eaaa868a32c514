"""The mixture of LoRA experts against the reference, in which each is merged into its own MLP, and numeric gradients."""

import pytest
import torch

from comigs_edge.nn import reference, tensors
from comigs_edge.nn.lora_mixture import mixture
from comigs_edge.nn.routing import Routing, route
from tests.nn.parts import assert_near, fresh_pass, random_parts, value_and_gradients


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_and_its_gradients_equal_the_reference(monkeypatch, experts, k, dtype):
    monkeypatch.setattr(tensors, "CHUNK", 4)  # several chunks, the last one short
    x, router, mlp, each = random_parts(experts, dtype=dtype)
    leaves = [x, router, *(tensor for expert in each for lora in expert for tensor in lora)]

    def fast():
        return mixture(x, mlp, each, None if experts == 1 else route(x @ router.T, k), 1.7, fresh_pass())

    def slow():
        weights = torch.ones(len(x), 1, dtype=dtype) if experts == 1 else route(x @ router.T, k).weights
        return reference.mix_lora(x, mlp, each, weights, 1.7)

    results = [value_and_gradients(function, leaves) for function in (fast, slow)]
    assert_near(*results, 1e-5 if dtype == torch.float32 else 1e-12)


def test_gradients_equal_numeric_differences():
    x, _, mlp, each = random_parts(2, tokens=2, width=3, ff_width=4, rank=1)
    weights = torch.rand(2, 2, dtype=torch.float64)
    leaves = [tensor.requires_grad_(True) for expert in each for lora in expert for tensor in lora]

    def function(x, weights, *_):
        return mixture(x, mlp, each, Routing(weights, weights), 0.9, fresh_pass())

    assert torch.autograd.gradcheck(function, (x.requires_grad_(True), weights.requires_grad_(True), *leaves))


def test_an_expert_that_no_token_chose_is_left_alone():
    x, _, mlp, each = random_parts(3)
    logits = torch.tensor([[5.0, 4.0, -5.0]] * 9, dtype=torch.float64)
    out = mixture(x, mlp, each, route(logits, 2), 1.0, fresh_pass())
    torch.testing.assert_close(out, reference.mix_lora(x, mlp, each[:2], route(logits[:, :2], 2).weights, 1.0))


def test_nothing_is_learned_by_updates_that_ask_for_no_gradient():
    x, router, mlp, each = random_parts(2)
    routing = route(x @ router.requires_grad_(True).T, 2)
    mixture(x, mlp, each, routing, 1.0, fresh_pass()).sum().backward()
    assert router.grad.abs().max() > 0
    assert all(tensor.grad is None for expert in each for lora in expert for tensor in lora)
