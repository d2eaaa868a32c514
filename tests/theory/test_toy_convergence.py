"""The alternating scheme on problems whose rate the theory gives (arXiv:2409.13931, theorems 3.1 and 3.2)."""

import pytest
import torch

from tests.theory import toy_convergence as toy


def convex(seed, largest=4.0):
    return toy.random_convex(8, 1.0, largest, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("same", [True, False])
def test_quadratics_converge_geometrically_at_the_rate_that_is_predicted(seed, same):
    train = convex(seed)
    found = toy.quadratic(train, train if same else convex(seed + 100), 5, turns=40)
    if found.bound < 1:  # theorem 3.1: ||T_k - T*|| <= (l1 l2)^k ||T_0 - T*||
        for turn, distance in enumerate(found.distances):
            assert distance <= found.bound**turn * found.distances[0] * (1 + 1e-9)
    if same:
        assert found.rate < 1
        assert found.measured == pytest.approx(found.rate, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_strictly_convex_function_falls_at_least_as_fast_as_its_condition_says(seed):
    """f_k - f* <= (1 - mu / L)^(2k) (f_0 - f*), where a turn minimises over the router and then over the experts."""
    hessian, (smallest, largest) = convex(seed, 10.0), (1.0, 10.0)
    u, v = toy.steps(hessian, 5)
    experts = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=toy.DTYPE)
    values = []
    for _ in range(20):
        router = v @ experts
        both = torch.cat([experts, router])
        values.append(float(both @ hessian @ both) / 2)
        experts = u @ router
    for turn, value in enumerate(values):
        assert value <= (1 - smallest / largest) ** (2 * turn) * values[0] * (1 + 1e-9)


def test_without_the_condition_of_the_theorem_it_can_diverge():
    """l1 l2 > 1: experts and router each undo what the other did."""
    train = torch.tensor([[1.0, 2.0], [2.0, 5.0]], dtype=toy.DTYPE)  # T' = -2 P
    valid = torch.tensor([[5.0, 2.0], [2.0, 1.0]], dtype=toy.DTYPE)  # P' = -2 T
    found = toy.quadratic(train, valid, 1, turns=10)
    assert (found.bound, found.rate) == (4.0, 4.0)
    assert found.distances[-1] == pytest.approx(4.0**10 * found.distances[0])


def test_two_linear_experts_and_a_softmax_router_converge_at_the_rate_of_the_hessian():
    found = toy.linear_mixture()
    assert found.rate < 1
    assert found.measured == pytest.approx(found.rate, rel=0.02)
    assert found.distances[-1] < 0.1 * found.distances[0]
