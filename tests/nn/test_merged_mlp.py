"""Training in the weights that the file holds, against autograd through the naive straight-through form."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from comigs_edge.nn import tensors as buffers
from comigs_edge.nn.lora import merge
from comigs_edge.nn.lora_mixture import mixture
from comigs_edge.nn.merged_mlp import frozen_mlp, quantised_mixture
from comigs_edge.nn.parallel import ParallelExpert, small_experts
from comigs_edge.nn.routing import route
from quantize.fake import fake_quantize
from tests.nn.test_routing import random_parts

SIZES = {"width": 32, "ff_width": 64, "tokens": 11}


def naive(x, mlp, experts, routing, factor, name):
    """Every expert's merged and rounded MLP as its own tensors; the rounding passed straight through by autograd."""

    def stored(weight, lora):
        merged = merge(weight, lora, factor)
        return merged + (fake_quantize(merged, name) - merged).detach()

    gate, up = mlp.gate_up.chunk(2)
    out = torch.zeros_like(x)
    for index, expert in enumerate(experts):
        hidden = F.silu(x @ stored(gate, expert.gate).T) * (x @ stored(up, expert.up).T)
        weight = 1.0 if routing is None else routing.weights[:, index, None]
        out = out + weight * (hidden @ stored(mlp.down, expert.down).T)
    return out


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F32"])
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (2, 2), (4, 2)])
def test_forward_and_gradients_equal_autograd_through_the_naive_form(monkeypatch, experts, k, name):
    monkeypatch.setattr(buffers, "CHUNK", 4)
    x, router, mlp, each = random_parts(experts, dtype=torch.float32, **SIZES)
    leaves = [x, router, *(tensor for expert in each for lora in expert for tensor in lora)]
    results = []
    for function in (quantised_mixture, naive):
        for leaf in leaves:
            leaf.requires_grad_(True)
        routing = None if experts == 1 else route(x @ router.T, k)
        out = function(x, mlp, each, routing, 1.7, name)
        grads = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
        results.append([out, *(grad for grad in grads if grad is not None)])
    assert len(results[0]) == len(leaves) + (experts > 1)
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_without_rounding_it_is_the_mixture_that_shares_the_bases_products():
    x, router, mlp, each = random_parts(3, **SIZES)
    routing = route(x @ router.T, 2)
    torch.testing.assert_close(
        quantised_mixture(x, mlp, each, routing, 1.7, "F32"), mixture(x, mlp, each, routing, 1.7)
    )


class _Matrices(TorchDispatchMode):
    """Counts the products whose result has the shape of a weight matrix."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.count = shapes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if "mm" in function.__name__ and tuple(out.shape) in self.shapes:
            self.count += 1
        return out


def test_the_backward_pass_forms_no_gradient_of_a_matrix():
    x, _, mlp, each = random_parts(1, dtype=torch.float32, width=32, ff_width=64, tokens=11)
    for lora in each[0]:
        lora.a.requires_grad_(True)
        lora.b.requires_grad_(True)
    out = quantised_mixture(x.requires_grad_(True), mlp, each, None, 1.0, "Q4_0").sum()
    with _Matrices({(64, 32), (32, 64), (128, 32)}) as seen:
        out.backward()
    assert seen.count == 3  # the merges of gate, up and down, which are made again
    assert each[0].down.a.grad.abs().max() > 0


def test_the_frozen_mlp_and_its_gradient_equal_torch():
    x, _, mlp, _ = random_parts(1)
    x.requires_grad_(True)
    gate, up = (x @ mlp.gate_up.T).chunk(2, dim=1)
    torch.testing.assert_close(frozen_mlp(x, mlp), (F.silu(gate) * up) @ mlp.down.T)
    assert torch.autograd.gradcheck(lambda x: frozen_mlp(x, mlp), x)


def test_parallel_experts_by_hand():
    # One token of width 2, two experts of width 1 with weights 3/4 and 1/4, scale 2:
    # 3/4 * 2 * down0 * silu(1) * 2 + 1/4 * 2 * down1 * silu(-1) * 3
    silu = lambda v: v / (1 + 2.718281828459045**-v)  # noqa: E731
    one = ParallelExpert(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0], [10.0]]))
    two = ParallelExpert(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([[5.0], [0.0]]))
    out = small_experts(torch.tensor([[1.0, -1.0]]), [one, two], torch.tensor([[0.75, 0.25]]), 2.0, None)
    first, second = 0.75 * 2 * silu(1.0) * 2, 0.25 * 2 * silu(-1.0) * 3
    torch.testing.assert_close(out, torch.tensor([[first + 5 * second, 10 * first]]))


def test_parallel_experts_compute_in_the_weights_that_the_file_holds_and_learn_as_without_rounding():
    generator = torch.Generator().manual_seed(0)
    each = [
        ParallelExpert(*(torch.randn(size, generator=generator) for size in ((32, 64), (32, 64), (64, 32))))
        for _ in range(2)
    ]
    x, weights = torch.randn(5, 64, generator=generator), torch.softmax(torch.randn(5, 2, generator=generator), -1)
    rounded = [
        ParallelExpert(fake_quantize(e.gate, "Q4_0"), fake_quantize(e.up, "Q4_0"), fake_quantize(e.down * 4, "Q4_0"))
        for e in each
    ]
    found = small_experts(x, each, weights, 4.0, "Q4_0")
    torch.testing.assert_close(found, small_experts(x, rounded, weights, 1.0, None))
    down = each[1].down.requires_grad_(True)
    (grad,) = torch.autograd.grad(small_experts(x, each, weights, 4.0, "Q4_0").sum(), down)
    hidden = F.silu(x @ rounded[1].gate.T) * (x @ rounded[1].up.T) * weights[:, 1:]
    torch.testing.assert_close(grad, 4.0 * hidden.sum(0).expand(64, 32), rtol=1e-4, atol=1e-4)
