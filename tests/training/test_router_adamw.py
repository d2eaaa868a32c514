"""Offsets of the router's logits learn at their own rate and are kept in the router itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.model import Model
from comigs_edge.nn.routing import Routing, route
from comigs_edge.nn.routing_stats import MeanInputs, MeanWeights
from comigs_edge.training.adamw import AdamW
from comigs_edge.training.router_adamw import RouterAdamW
from comigs_edge.training.trainer import Trainer
from tests.training.test_trainer import rows, schedule


def inputs(seed: int = 0, tokens: int = 40) -> Tensor:
    """Tokens (N, D) whose mean is not zero, as a norm's output has it."""
    return torch.randn(tokens, 6, generator=torch.Generator().manual_seed(seed)) + torch.tensor([2.0, 0, 0, 1, 0, 0])


def loss(logits: Tensor) -> Tensor:
    """Something that wants some tokens to choose the first expert, most of them the second."""
    wanted = torch.arange(len(logits)) % 5 > 0
    return F.cross_entropy(logits, wanted.long())


def learned(routers: list[Tensor], blocks: list[Tensor], offset_rate: float, learning_rate: float = 0.0, steps: int = 1) -> None:
    """Changes the routers by some steps; `blocks` has what each of them reads."""
    optimiser = RouterAdamW([router.requires_grad_() for router in routers], learning_rate, 0.0, offset_rate)
    for _ in range(steps):
        for block, (router, x) in enumerate(zip(routers, blocks, strict=True)):
            router.grad = None
            loss(x @ router.T).backward()
            if optimiser.inputs is not None:
                optimiser.inputs(block, x, Routing(x, x))
        optimiser.step()


def test_an_offset_moves_the_mean_tokens_logits_by_its_rate_and_nothing_orthogonal():
    x, router = inputs(), torch.zeros(2, 6)
    learned([router], [x], 0.25)
    mean = x.mean(0)
    # AdamW's first step has its rate in size: towards the second expert, which most tokens want.
    torch.testing.assert_close(mean @ router.detach().T, torch.tensor([-0.25, 0.25]))
    orthogonal = torch.tensor([0.0, 1, 0, 0, 0, 0]) - mean * mean[1] / mean.dot(mean)
    torch.testing.assert_close(orthogonal @ router.detach().T, torch.zeros(2), atol=1e-6, rtol=0)


def test_steps_are_those_of_autograd_through_offsets_written_out_and_torchs_adamw():
    blocks, generator, steps = [inputs(1), inputs(4)], torch.Generator().manual_seed(2), 7
    routers = [torch.randn(2, 6, generator=generator) * 0.1 for _ in blocks]
    starts = [router.clone() for router in routers]
    offsets = torch.zeros(2, requires_grad=True)  # one an expert, for both blocks
    ways = [x.mean(0) / x.mean(0).dot(x.mean(0)) for x in blocks]
    reference = torch.optim.AdamW([offsets], lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(steps):
        reference.zero_grad()
        for x, start, way in zip(blocks, starts, ways, strict=True):
            loss(x @ (start + torch.outer(offsets, way)).T).backward()
        reference.step()
    learned(routers, blocks, 0.05, steps=steps)
    for router, start, way in zip(routers, starts, ways, strict=True):
        expected = (start + torch.outer(offsets, way)).detach()
        torch.testing.assert_close(router.detach(), expected, atol=1e-6, rtol=1e-5)


def test_without_a_rate_or_a_watched_pass_it_is_adamw():
    x = inputs()
    found = []
    for optimiser in (AdamW, lambda *given: RouterAdamW(*given, 0.0), lambda *given: RouterAdamW(*given, 0.3)):
        router = torch.ones(2, 6, requires_grad=True)
        loss(x @ router.T).backward()
        optimiser([router], 1e-2, 0.01).step()
        found.append(router.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("checkpointing", ["block", "attention", "none"])
@pytest.mark.parametrize("with_balance", [False, True])
def test_mean_inputs_are_those_that_routers_read_in_one_pass_or_two(tiny_base, checkpointing, with_balance):
    adapters = Adapters.initial(ExpertsConfig(1, 4, 8.0, 2), tiny_base.hparams, 0)
    model, batch = Model(tiny_base, adapters, checkpointing=checkpointing), rows(1).batch(0, 4)
    read: list[tuple[int, Tensor]] = []
    model.watch = lambda block, normed, routing: read.append((block, normed.detach().clone()))
    with torch.no_grad():
        model(batch.tokens, batch.documents, with_balance)
    expected = [torch.cat([x for number, x in read if number == block]).mean(0) for block in range(2)]
    model.watch = means = MeanInputs()
    for tensor in adapters.group(router=True):
        tensor.requires_grad_()
    model(batch.tokens, batch.documents, with_balance).hidden.sum().backward()
    for found, wanted in zip(means.means(), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_offsets_leave_an_unwanted_expert_in_fewer_steps_than_the_routers_rate():
    x, shares = inputs(), {}
    for offset_rate in (0.0, 0.3):
        router = torch.zeros(2, 6)
        learned([router], [x], offset_rate, learning_rate=2e-3, steps=6)
        shares[offset_rate] = float(F.softmax(x @ router.detach().T, dim=-1).mean(0)[1])
    assert shares[0.0] < 0.55
    assert shares[0.3] > 0.75


@pytest.mark.parametrize("form", ["lora", "parallel"])
def test_the_trainer_adds_the_offsets_step_to_every_router_along_its_mean_input(tiny_base, form):
    layout, found = ExpertsConfig(1, 4, 8.0, 2, form=form, expert_width=32 * (form == "parallel")), []
    for offset_rate in (0.0, 0.3):
        generator = torch.Generator().manual_seed(3)
        adapters = Adapters.initial(layout, tiny_base.hparams, 0)
        for tensor in adapters.group(router=False):  # experts that differ, so that the router has something to learn
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
        plan = schedule(router_offset_rate=offset_rate)
        trainer = Trainer(Model(tiny_base, adapters), rows(1), rows(2), plan)
        trainer.expert_steps = plan.router_period
        batch = trainer.router_rows.batch(0, plan.batch)
        trainer.model.watch = means = MeanInputs()
        with torch.no_grad():
            trainer.model(batch.tokens, batch.documents)
        assert trainer.step().phase == "router"
        assert trainer.model.watch is None
        found.append([router.detach() for router in adapters.group(router=True)])
    steps = [(moved - plain) @ mean for plain, moved, mean in zip(*found, means.means(), strict=True)]
    torch.testing.assert_close(steps[0], steps[1], atol=1e-5, rtol=0)  # one for all blocks
    for plain, moved, mean, step in zip(*found, means.means(), steps, strict=True):
        torch.testing.assert_close(step.abs(), torch.full((2,), 0.3), atol=1e-3, rtol=0)
        torch.testing.assert_close(moved - plain, torch.outer(step, mean / mean.dot(mean)), atol=1e-5, rtol=1e-4)


def test_each_step_takes_the_mean_of_its_own_inputs():
    router, reference = torch.zeros(2, 6, requires_grad=True), torch.zeros(2, 6)
    optimiser = RouterAdamW([router], 0.0, 0.0, 0.05)
    offsets = torch.zeros(2, requires_grad=True)
    theirs = torch.optim.AdamW([offsets], lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)
    for seed in range(4):
        x = inputs(seed) * (1 + seed)
        way = x.mean(0) / x.mean(0).dot(x.mean(0))
        with torch.no_grad():
            offsets.zero_()
        theirs.zero_grad()
        loss(x @ (reference + torch.outer(offsets, way)).T).backward()
        theirs.step()
        reference += torch.outer(offsets.detach(), way)
        router.grad = None
        loss(x @ router.T).backward()
        optimiser.inputs(0, x, Routing(x, x))
        optimiser.step()
    torch.testing.assert_close(router.detach(), reference, atol=1e-6, rtol=1e-5)


def test_a_watch_of_weights_takes_what_each_token_gave_to_every_expert():
    x, weights = inputs(), MeanWeights()
    weights(0, x, route(torch.zeros(len(x), 2), 2))
    weights(1, x, route(torch.tensor([[1.0, 3.0, 2.0]] * len(x)), 2))
    assert weights.by_block() == [[0.5, 0.5], pytest.approx([0.0, 0.731059, 0.268941], rel=1e-5)]
