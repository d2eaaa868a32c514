"""Parallel experts by hand and against the reference."""

import pytest
import torch
import torch.nn.functional as F

from comigs_edge.nn import reference
from comigs_edge.nn.merged_mlp import frozen_mlp
from comigs_edge.nn.parallel import ParallelExpert, small_experts
from comigs_edge.nn.routing import route
from quantize.fake import fake_quantize
from tests.nn.parts import assert_near, fresh_pass, parallel_experts, random_parts, value_and_gradients


@pytest.mark.parametrize("name", [None, "Q4_0", "Q8_0"])
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (2, 2), (4, 2)])
def test_parallel_experts_and_their_gradients_equal_the_reference(experts, k, name):
    x, router, mlp, _ = random_parts(experts, tokens=11, width=64, ff_width=96, dtype=torch.float32)
    each = parallel_experts(experts, 64, 32, torch.float32)
    leaves = [x, router, *(matrix for expert in each for matrix in expert)]

    def fast():
        weights = None if experts == 1 else route(x @ router.T, k).weights
        return frozen_mlp(x, mlp, fresh_pass()) + small_experts(x, each, weights, 4.0, name)

    def slow():
        weights = torch.ones(len(x), 1) if experts == 1 else route(x @ router.T, k).weights
        return reference.mix_parallel(x, mlp, each, weights, 4.0, name)

    assert_near(*[value_and_gradients(function, leaves) for function in (fast, slow)], 2e-5)


def test_parallel_experts_by_hand():
    # One token of width 2, two experts of width 1 with weights 3/4 and 1/4, scale 2:
    # 3/4 * 2 * down0 * silu(1) * 2 + 1/4 * 2 * down1 * silu(-1) * 3
    silu = lambda v: v / (1 + 2.718281828459045**-v)  # noqa: E731
    one = ParallelExpert(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0], [10.0]]))
    two = ParallelExpert(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([[5.0], [0.0]]))
    out = small_experts(torch.tensor([[1.0, -1.0]]), [one, two], torch.tensor([[0.75, 0.25]]), 2.0, None)
    first, second = 0.75 * 2 * silu(1.0) * 2, 0.25 * 2 * silu(-1.0) * 3
    torch.testing.assert_close(out, torch.tensor([[first + 5 * second, 10 * first]]))


def test_parallel_experts_compute_in_the_files_weights_and_learn_as_without_rounding():
    generator = torch.Generator().manual_seed(0)
    each = [
        ParallelExpert(*(torch.randn(size, generator=generator) for size in ((32, 64), (32, 64), (64, 32)))) for _ in range(2)
    ]
    x, weights = torch.randn(5, 64, generator=generator), torch.softmax(torch.randn(5, 2, generator=generator), -1)
    rounded = [
        ParallelExpert(fake_quantize(e.gate, "Q4_0"), fake_quantize(e.up, "Q4_0"), fake_quantize(e.down * 4, "Q4_0"))
        for e in each
    ]
    out = small_experts(x, each, weights, 4.0, "Q4_0")
    torch.testing.assert_close(out, small_experts(x, rounded, weights, 1.0, None))
    down = each[1].down.requires_grad_(True)
    (grad,) = torch.autograd.grad(small_experts(x, each, weights, 4.0, "Q4_0").sum(), down)
    hidden = F.silu(x @ rounded[1].gate.T) * (x @ rounded[1].up.T) * weights[:, 1:]
    torch.testing.assert_close(grad, 4.0 * hidden.sum(0).expand(64, 32), rtol=1e-4, atol=1e-4)
