"""The optimiser of matrices against torch's own class, and its iteration against singular values."""

import pytest
import torch

from comigs_edge.training.muon import SIZE, Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_what_comes_out_has_the_directions_of_the_matrix_and_singular_values_about_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for matrix, found in zip(matrices, orthogonalise(matrices), strict=True):
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        within = u.T @ found @ vt.T  # diagonal, if its directions are the same
        torch.testing.assert_close(within, within.diagonal().diag(), atol=1e-3, rtol=0)
        assert 0.6 < within.diagonal().min() <= within.diagonal().max() < 1.3


def test_a_matrix_of_zeros_stays_one_and_one_of_low_rank_gets_no_other_directions():
    assert not orthogonalise(torch.zeros(1, 4, 9)).any()
    low = torch.outer(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, -1.0, 4.0, 5.0]))
    values = torch.linalg.svdvals(orthogonalise(low[None])[0])
    assert values[0] > 0.6
    assert values[1:].max() < 1e-3


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_steps_and_weight_decay_are_those_of_torch(shape):
    muon = pytest.importorskip("torch.optim", reason="torch has none").__dict__.get("Muon")
    if muon is None:
        pytest.skip("this torch has no Muon")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    one = Muon([ours], 0.1, 0.5)
    # Theirs iterates in bfloat16, and its decay is by the rate alone.
    other = muon([theirs], lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = theirs.grad = torch.randn(shape, generator=generator)
        one.step()
        other.step()
    moved = (theirs - start).detach()
    moved_by_ours = (ours - start).detach()
    decay = start * ((1 - 0.05) ** 4 - 1)
    ratio = ((moved_by_ours - decay).norm() / (moved - decay).norm()).item()
    assert ratio == pytest.approx(SIZE / 0.2, rel=0.1)
    assert torch.cosine_similarity((moved_by_ours - decay).flatten(), (moved - decay).flatten(), 0) > 0.98


def test_a_tensor_without_a_gradient_stays_and_factors_scale_the_step():
    still, slow, fast = (torch.zeros(4, 8, requires_grad=True) for _ in range(3))
    gradient = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    slow.grad, fast.grad = gradient, gradient.clone()
    one = Muon([still, slow, fast], 0.1, 0.0)
    one.factors = {fast: 3.0}
    one.step()
    assert not still.any()
    torch.testing.assert_close(fast, 3 * slow)
