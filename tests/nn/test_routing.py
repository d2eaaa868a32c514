"""The router's rule and its loss."""

import pytest
import torch

from comigs_edge.errors import ComigsError
from comigs_edge.nn.experts import experts_per_token
from comigs_edge.nn.routing import Routing, balance_loss, route


def test_weights_are_the_softmax_over_the_chosen_logits():
    weights = route(torch.tensor([[1.0, 3.0, 2.0]]), 2).weights
    # e^3 / (e^3 + e^2) = 1 / (1 + e^-1) = 0.731059
    torch.testing.assert_close(weights, torch.tensor([[0.0, 0.731059, 0.268941]]))


def test_one_expert_a_token_is_refused_with_the_reason():
    with pytest.raises(ComigsError, match="no gradient"):
        experts_per_token(2, 1)
    assert [experts_per_token(n) for n in (1, 2, 3, 8)] == [1, 2, 2, 2]


def test_balance_loss_is_constant_for_two_experts_and_teaches_nothing():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 2, generator=generator, dtype=torch.float64, requires_grad=True)
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
