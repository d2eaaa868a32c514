"""The mixture against a slow twin in which every expert has its own merged MLP, and against numeric gradients."""

import pytest
import torch
import torch.nn.functional as F

from comigs_edge.errors import ComigsError
from comigs_edge.nn import tensors as buffers
from comigs_edge.nn.experts import experts_per_token
from comigs_edge.nn.lora import LoRA, LoRAExpert, merge
from comigs_edge.nn.lora_mixture import mixture
from comigs_edge.nn.mlp import Frozen
from comigs_edge.nn.routing import Routing, balance_loss, route


def random_parts(experts, tokens=9, width=8, ff_width=12, rank=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def random(*size):
        return torch.randn(*size, generator=generator, dtype=dtype) * 0.5

    mlp = Frozen(random(2 * ff_width, width), random(width, ff_width))

    def lora(out_width, in_width):
        return LoRA(random(rank, in_width), random(out_width, rank))

    each = [LoRAExpert(lora(ff_width, width), lora(ff_width, width), lora(width, ff_width)) for _ in range(experts)]
    return random(tokens, width), random(experts, width), mlp, each


def slow_twin(x, mlp, experts, routing, factor):
    """Each expert merged into its own copy of the MLP, all computed for every token."""
    gate, up = mlp.gate_up.chunk(2)
    out = torch.zeros_like(x)
    for index, expert in enumerate(experts):
        hidden = F.silu(x @ merge(gate, expert.gate, factor).T) * (x @ merge(up, expert.up, factor).T)
        weight = 1.0 if routing is None else routing.weights[:, index, None]
        out = out + weight * (hidden @ merge(mlp.down, expert.down, factor).T)
    return out


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_and_its_gradients_equal_the_slow_twin(monkeypatch, experts, k, dtype):
    monkeypatch.setattr(buffers, "CHUNK", 4)  # several chunks, the last one short
    x, router, mlp, each = random_parts(experts, dtype=dtype)
    leaves = [x, router, *(tensor for expert in each for lora in expert for tensor in lora)]
    results = []
    for function in (mixture, slow_twin):
        for leaf in leaves:
            leaf.requires_grad_(True)
        routing = None if experts == 1 else route(x @ router.T, k)
        out = function(x, mlp, each, routing, 1.7)
        grads = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
        results.append([out, *(grad for grad in grads if grad is not None)])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_gradients_equal_numeric_differences():
    x, _, mlp, each = random_parts(3, tokens=4)
    weights = torch.rand(4, 3, dtype=torch.float64)
    leaves = [tensor.requires_grad_(True) for expert in each for lora in expert for tensor in lora]

    def function(x, weights, *_):
        return mixture(x, mlp, each, Routing(weights, weights), 0.9)

    assert torch.autograd.gradcheck(function, (x.requires_grad_(True), weights.requires_grad_(True), *leaves))


def test_an_expert_that_no_token_chose_is_left_alone():
    x, _, mlp, each = random_parts(3)
    logits = torch.tensor([[5.0, 4.0, -5.0]] * 9, dtype=torch.float64)
    routing = route(logits, 2)
    out = mixture(x, mlp, each, routing, 1.0)
    torch.testing.assert_close(out, slow_twin(x, mlp, each[:2], route(logits[:, :2], 2), 1.0))


def test_weights_are_the_softmax_over_the_chosen_logits():
    weights = route(torch.tensor([[1.0, 3.0, 2.0]]), 2).weights
    # e^3 / (e^3 + e^2) = 1 / (1 + e^-1) = 0.731059
    torch.testing.assert_close(weights, torch.tensor([[0.0, 0.731059, 0.268941]]))


def test_one_expert_a_token_is_refused_with_the_reason():
    with pytest.raises(ComigsError, match="no gradient"):
        experts_per_token(2, 1)
    assert [experts_per_token(n) for n in (1, 2, 3, 8)] == [1, 2, 2, 2]


def test_balance_loss_is_constant_for_two_experts_and_teaches_nothing():
    logits = torch.randn(50, 2, requires_grad=True)
    loss = balance_loss(route(logits, 2))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == pytest.approx(0.5)  # (f0 P0 + f1 P1) / 2 with f = 1 and P0 + P1 = 1
    assert gradient.abs().max() < 1e-9


def test_balance_loss_of_three_experts_by_hand():
    # Two tokens choose experts (0, 1), one chooses (0, 2): f = (1, 2/3, 1/3). Probabilities are given.
    probabilities = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.5, 0.1, 0.4]])
    weights = torch.tensor([[0.7, 0.3, 0.0], [0.6, 0.4, 0.0], [0.6, 0.0, 0.4]])
    # P = (1.6, 0.8, 0.6) / 3; (1 * 1.6 + 2 * (2/3 * 0.8 + 1/3 * 0.6)) / 3 / (2^2 + 1)
    expected = (1.6 + 2 * (2 / 3 * 0.8 + 0.6 / 3)) / 3 / 5
    assert float(balance_loss(Routing(weights, probabilities))) == pytest.approx(expected)
