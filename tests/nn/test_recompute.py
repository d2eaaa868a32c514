"""What is computed again gives the gradients of what is kept."""

import pytest
import torch

from comigs_edge.nn.recompute import recompute
from comigs_edge.nn.tensors import Buffers

WEIGHT = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rows():
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_(True)


@pytest.mark.parametrize("sizes", [[7], [3, 4], [2, 2, 2, 1]])
def test_value_and_gradients_equal_those_of_the_function_itself(sizes):
    weight, x, other = WEIGHT.clone().requires_grad_(True), rows(), rows()

    def function(number, piece):
        return torch.tanh(piece @ weight), None

    out, extra = recompute(x, function, sizes, Buffers(), "out")
    out.square().sum().backward()
    expected = torch.autograd.grad(torch.tanh(other @ weight).square().sum(), (other, weight))
    assert extra is None
    for ours, theirs in zip((x.grad, weight.grad), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_second_result_of_one_piece_has_its_gradient_too():
    weight, x, other = WEIGHT.clone().requires_grad_(True), rows(), rows()
    out, extra = recompute(x, lambda number, piece: (piece @ weight, piece.square().mean()), [7], Buffers(), "out")
    (out.sum() + 3 * extra).backward()
    (expected,) = torch.autograd.grad((other @ weight).sum() + 3 * other.square().mean(), other)
    torch.testing.assert_close(x.grad, expected)


def test_each_piece_is_computed_twice_and_knows_its_number():
    calls = []

    def function(number, piece):
        calls.append((number, len(piece), torch.is_grad_enabled()))
        return piece * 2, None

    out, _ = recompute(rows(), function, [3, 4], Buffers(), "out")
    out.sum().backward()
    assert calls == [(0, 3, False), (1, 4, False), (0, 3, True), (1, 4, True)]
