"""What a trainer does with its schedule, its rows and its formats, step by step, against torch's own loss and optimiser."""

import pytest
import torch
import torch.nn.functional as F

from comigs_edge.data.tokenizer import Encoded
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig, is_router
from comigs_edge.nn.model import Model
from comigs_edge.training import trainer as training
from comigs_edge.training.batches import Rows
from comigs_edge.training.pace import Pace, steps_that_fit
from comigs_edge.training.trainer import Trainer
from tests.training.test_trainer import rows, schedule


@pytest.fixture(params=["lora", "parallel"])
def make(tiny_base, request):
    """A trainer of new adapters, or of `adapters`."""

    def trainer(adapters=None, text=None, **changes):
        layout = ExpertsConfig(1, 4, 8.0, 2, form=request.param, expert_width=32 * (request.param == "parallel"))
        adapters = adapters or Adapters.initial(layout, tiny_base.hparams, 0)
        return Trainer(Model(tiny_base, adapters), text or rows(1), rows(2), schedule(**changes))

    trainer.form = request.param
    return trainer


def cross_entropy(model, batches):
    """Mean loss of the tokens that count, by torch from the logits of the whole vocabulary."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            logits = model.logits(model(batch.tokens, batch.documents).hidden)
            total += float(F.cross_entropy(logits[batch.scored], batch.targets[batch.scored], reduction="sum"))
            count += int(batch.scored.sum())
    return total / count


def first_loss(trainer):
    next(iter(trainer.run()))
    return trainer.first_loss


def test_the_first_loss_is_the_bases_own_or_that_of_the_file_that_holds_what_was_learned(make, make_adapters, tiny_base):
    plan = {"block_format": "Q4_0", "quantise_start": 1.0}
    new, learned = make(**plan), make(make_adapters(form=make.form), **plan)
    measured = new.validation.rows.first(4, 2)
    assert first_loss(new) == pytest.approx(cross_entropy(Model(tiny_base, None), measured), rel=1e-5)
    stored = Model(tiny_base, make_adapters(form=make.form))
    stored.block_format = "Q4_0"
    expected = cross_entropy(stored, measured)
    assert first_loss(learned) == pytest.approx(expected, rel=1e-5)
    stored.block_format = None
    assert abs(cross_entropy(stored, measured) - expected) > 1e-3


def test_a_steps_loss_is_the_mean_over_the_tokens_that_count(make):
    ids = torch.randint(3, 60, (400,), generator=torch.Generator().manual_seed(5)).tolist()
    one = make(text=Rows([Encoded(ids, [place % 3 == 0 for place in range(400)])], 32, 0))
    expected = cross_entropy(one.model, [one.training.batch(0, 2)])
    assert one.step().loss == pytest.approx(expected, rel=1e-5)


def test_steps_read_batch_after_batch_each_phase_its_own(make, monkeypatch):
    one, seen, batch = make(), {"expert": [], "router": []}, Rows.batch

    def read(rows, number, size):
        seen["expert" if rows is one.training else "router"].append((number, size))
        return batch(rows, number, size)

    monkeypatch.setattr(Rows, "batch", read)
    assert len(list(one.run())) == one.total_steps == 14
    assert seen == {"expert": [(n, 2) for n in range(8)], "router": [(n, 2) for n in range(6)]}


def test_steps_compute_in_the_files_weights_from_the_step_on_that_the_schedule_names(make, monkeypatch):
    one, seen, loss = make(block_format="Q4_0", quantise_start=0.5), [], training.batch_loss

    def watch(model, *arguments):
        seen.append(model.block_format)
        return loss(model, *arguments)

    monkeypatch.setattr(training, "batch_loss", watch)
    phases = "".join(event.phase[0] for event in one.run())
    assert (phases, seen) == ("eeerreeerreerr", [None] * 5 + [None] + ["Q4_0"] * 8)


def test_a_first_step_is_torchs_adamw_with_the_groups_own_rate_and_the_decay(make):
    one = make(router_period=1, router_learning_rate=0.05, weight_decay=0.5)
    for phase, rate in (("expert", 1e-2), ("router", 0.05)):
        before = {name: tensor.detach().clone() for name, tensor in one.adapters.named.items()}
        assert one.step().phase == phase
        for name, tensor in one.adapters.named.items():
            if is_router(name) == (phase == "router"):
                theirs = before[name].requires_grad_()
                theirs.grad = tensor.grad.clone()
                torch.optim.AdamW([theirs], rate, (0.9, 0.95), weight_decay=0.5).step()
                torch.testing.assert_close(tensor.detach(), theirs.detach(), rtol=1e-5, atol=1e-7)


def test_steps_of_later_epochs_cost_less_where_the_lower_blocks_are_on_disk():
    pace = Pace(step=8, quantised_step=8, validation=0, saved=4, epoch=10)
    # 20 steps: 20 * 8 - 10 * 4 = 120.
    assert steps_that_fit(120, pace, schedule(), has_router=False) == 20
    assert steps_that_fit(119, pace, schedule(), has_router=False) == 19
