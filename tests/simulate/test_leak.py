"""The leak of the published code's loop: it is there with --leaky, exactly, and nowhere else."""

import pytest
import torch

from comigs_edge.nn.experts import is_router
from comigs_edge.nn.loss import next_token_loss
from comigs_edge.simulate.device import Leaky
from comigs_edge.training.trainer import Trainer


def gradients(trainer, batches):
    """Sum over batches of the mean loss's gradient of every tensor, worked out anew."""
    names = list(trainer.adapters.named)
    tensors = [tensor.requires_grad_(True) for tensor in trainer.adapters.named.values()]
    total = [torch.zeros_like(tensor) for tensor in tensors]
    for batch in batches:
        hidden = trainer.model(batch.tokens, batch.documents).hidden
        loss = next_token_loss(trainer.model.base, hidden, batch.targets, batch.scored) / batch.num_scored
        for sum_, gradient in zip(total, torch.autograd.grad(loss, tensors), strict=True):
            sum_ += gradient
    return dict(zip(names, total, strict=True))


@pytest.fixture
def still(fleet):
    """A leaky trainer whose rates are zero: nothing moves, so gradients can be worked out anew. Nothing is at zero, either."""
    trainer = fleet("comigs-1g1s", leaky=True).devices[0].trainer
    generator = torch.Generator().manual_seed(3)
    for name, tensor in trainer.adapters.named.items():
        if name.endswith("lora_b"):
            tensor.detach().copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    for optimiser in (trainer.experts, trainer.router):
        optimiser.learning_rate = optimiser.weight_decay = 0.0
    return trainer


def test_the_leaky_routers_first_step_descends_on_all_training_gradients_before(still, monkeypatch):
    monkeypatch.setattr(type(still.schedule), "learning_rate", lambda self, step: 0.0)
    training = [still.training.batch(number, 2) for number in range(3)]
    validation = still.router_rows.batch(0, 2)
    for _ in range(3):
        still.step()
    wanted, found = gradients(still, [*training, validation]), {}

    def recording():  # what the router's optimiser sees
        found.update({n: t.grad.clone() for n, t in still.adapters.named.items() if t.grad is not None})

    monkeypatch.setattr(still.router, "step", recording)
    still.step()
    routers = [name for name in wanted if is_router(name)]
    assert len(routers) == 2
    for name in routers:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-5)
        assert wanted[name].abs().max() > 1e-3


def test_after_the_leaky_routers_turn_experts_hold_its_validation_gradients(still, monkeypatch):
    monkeypatch.setattr(type(still.schedule), "learning_rate", lambda self, step: 0.0)
    for _ in range(5):  # three of the experts, two of the router
        still.step()
    wanted = gradients(still, [still.router_rows.batch(number, 2) for number in range(2)])
    for name, tensor in still.adapters.named.items():
        if is_router(name):
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, wanted[name], rtol=1e-3, atol=1e-5)


def test_without_the_flag_nothing_is_left_after_the_routers_turn(fleet):
    trainer = fleet("comigs-1g1s").devices[0].trainer
    assert type(trainer) is Trainer
    for _ in range(5):
        trainer.step()
    assert all(tensor.grad is None for name, tensor in trainer.adapters.named.items() if not is_router(name))


def test_a_leaky_fleet_learns_something_else_and_resumes_with_its_gradients(fleet):
    def nothing(steps):
        pass

    leaky, clean, first, resumed = (fleet("comigs-1g1s", leaky=flag) for flag in (True, False, True, True))
    for one in (leaky, clean):
        while not one.is_done:
            one.round(nothing)
    assert leaky.digest() != clean.digest()
    first.round(nothing)
    arrays, progress = first.state()
    assert any("grad." in name for name in arrays)
    resumed.restore({name: array.copy() for name, array in arrays.items()}, progress)
    assert isinstance(resumed.devices[0].trainer, Leaky)
    while not resumed.is_done:
        resumed.round(nothing)
    assert resumed.digest() == leaky.digest()
