"""The optimiser against torch's own class."""

import pytest
import torch

from comigs_edge.training.adamw import AdamW


@pytest.mark.parametrize("beta2", [0.95, 0.987])
def test_steps_and_weight_decay_are_those_of_torch(beta2):
    ours, theirs = (torch.ones(3, requires_grad=True) for _ in range(2))
    one, other = AdamW([ours], 0.1, 0.5), torch.optim.AdamW([theirs], 0.1, (0.9, beta2), weight_decay=0.5)
    one.beta2 = beta2
    for _ in range(3):
        for tensor in (ours, theirs):
            tensor.grad = torch.tensor([1.0, -2.0, 0.0])
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs)
