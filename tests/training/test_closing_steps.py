"""The steps of a closing phase begin where least squares puts the routers, and are torch's AdamW on the losses of two texts."""

import pytest
import torch
import torch.nn.functional as F

from comigs_edge.arrays import digest
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig, is_router
from comigs_edge.nn.model import Model
from comigs_edge.training.batches import Rows
from comigs_edge.training.closing import Closing, closes, ordinary_rows
from comigs_edge.training.silence import fit_zero
from comigs_edge.training.trainer import Trainer
from tests.training.test_trainer import rows, schedule

SEED, BATCH, STEPS = 7, 4, 5


def words(first, seed, tokens=3000):
    ids = torch.randint(first, first + 57, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Rows([Encoded(ids, [True] * tokens)], 32, 0)


def trained(base, specialists=1, **changes):
    layout = ExpertsConfig(specialists, 4, 8.0, min(2, 1 + specialists), form="parallel", expert_width=32)
    usual = {"steps": STEPS, "batch": BATCH, "closing_steps": STEPS, "expert_learning_rate": 0.1}
    main = Trainer(Model(base, Adapters.initial(layout, base.hparams, 0)), rows(1), rows(2), schedule(**usual | changes))
    for _ in main.run():
        pass
    return main


@pytest.fixture
def ordinary():
    return words(200, 4)


@pytest.fixture
def close(tiny_base, ordinary):
    """The closing phase behind a training with this schedule."""

    def make(specialists=2, **changes):
        main = trained(tiny_base, specialists, **changes)
        return Closing(main, ordinary, SEED, lambda each: Model(tiny_base, each))

    return make


def begun(base, main, ordinary):
    """The best state with a zero expert, and its routers where least squares puts them (see `test_silence`)."""
    best = Adapters.from_arrays(main.adapters.layout, base.hparams, main.best)
    adapters = best.with_zero(SEED)
    fit_zero(adapters, own_rows(), ordinary, BATCH, lambda each: Model(base, each))
    return adapters


def own_rows():
    """Validation text without the rows that are measured."""
    return rows(2).after(4)


def mean_loss(model, batch):
    logits = model.logits(model(batch.tokens, batch.documents).hidden)
    return F.cross_entropy(logits[batch.scored], batch.targets[batch.scored])


COURSES = {
    "usual": ({}, None),
    "offsets, and balance": ({"router_offset_rate": 0.3, "balance_weight": 10.0}, None),
    "jointly": ({"jointly": True}, None),
    "in the file's weights": ({"block_format": "Q4_0", "quantise_start": 0.5}, "Q4_0"),
    "stored otherwise than computed": ({"block_format": "Q4_0", "quantise_start": 1.0}, None),
    "a generalist alone": ({"specialists": 0}, None),
    "further": ({"rate_factor": 0.3}, None),
}


@pytest.mark.parametrize("course", COURSES)
def test_they_are_torchs_adamw_at_a_falling_rate_on_the_two_texts_losses_alone(tiny_base, close, ordinary, course):
    changes, block_format = COURSES[course]
    closing = close(**changes)
    adapters = begun(tiny_base, closing.main, ordinary)
    routers = [tensor.requires_grad_() for tensor in adapters.group(router=True)]
    theirs = torch.optim.AdamW(routers, 1e-2, (0.9, 0.95), weight_decay=0.01)
    falls = torch.optim.lr_scheduler.LambdaLR(theirs, [1.0, 0.8, 0.6, 0.4, 0.2, 0.0].__getitem__)
    model = Model(tiny_base, adapters)
    model.block_format = block_format
    for number in range(STEPS):  # of four rows one is ordinary text; their own counts four times as much
        theirs.zero_grad()
        for share, batch in ((0.8, own_rows().batch(number, 3)), (0.2, ordinary.batch(number, 1))):
            (share * mean_loss(model, batch)).backward()
        theirs.step()
        falls.step()
    rates = [closing._trainer.router.learning_rate for _ in closing.run()]
    assert rates == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002])
    for name, tensor in closing.adapters.named.items():
        torch.testing.assert_close(tensor, adapters.named[name], rtol=0, atol=1e-5 if is_router(name) else 0)


def test_before_its_first_step_it_is_silent_on_ordinary_text_and_on_its_own_it_is_not(tiny_base, close, ordinary):
    closing, shares = close(router_learning_rate=0.0), []
    for _ in closing.run():
        pass
    weights = []
    closing.model.watch = lambda block, normed, routing: weights.append(routing.weights[:, -1])
    for text in (own_rows(), ordinary):
        weights.clear()
        for batch in text.first(32, BATCH):
            closing.model(batch.tokens, batch.documents)
        shares.append(float(torch.cat(weights).mean()))
    assert shares[0] < 0.3 < 0.6 < shares[1], shares


def test_steps_behind_an_interruption_begin_where_the_last_one_ended(tiny_base, close):
    straight, cut, last = close(), close(), close()
    for _ in straight.run():
        pass
    for _ in zip(range(2), cut.run(), strict=False):
        pass
    assert cut.steps == 2
    arrays, progress = cut.state()
    kinds, names = zip(*(name.removeprefix("closing.").split(".", 1) for name in arrays), strict=True)
    assert set(kinds) == {"current", "step", "exp_avg", "exp_avg_sq"}
    assert all(map(is_router, names))
    last.restore({name: array.copy() for name, array in arrays.items()}, progress)
    events = list(last.run())
    assert len(events) == STEPS - 2
    assert (digest(last.adapters.arrays()), last.loss) == (digest(straight.adapters.arrays()), straight.loss)


def test_its_steps_are_counted_behind_those_of_the_training_and_none_is_the_best(close):
    closing = close(router_period=5, router_steps=3)
    events = list(closing.run())
    assert [(event.phase, event.expert_steps, event.router_steps) for event in events] == [
        ("closing", 5, 3 + number) for number in range(1, STEPS + 1)
    ]
    assert not any(event.is_best for event in events)
    assert events[-1].validation_loss == closing.loss


def test_a_training_closes_if_it_may_and_has_found_something_better_than_its_start(tiny_base):
    still = {"expert_learning_rate": 0.0, "final_learning_rate": 0.0, "router_learning_rate": 0.0}
    assert closes(trained(tiny_base))
    assert not closes(trained(tiny_base, closing_steps=0))
    assert not closes(trained(tiny_base, **still))


def test_no_more_ordinary_text_is_made_than_its_steps_or_its_start_read():
    assert ordinary_rows(schedule(steps=400, closing_steps=40, batch=8)) == 80  # two of eight rows a step
    assert ordinary_rows(schedule(steps=100, closing_steps=10, batch=5)) == 32  # 13, and those of least squares
    assert ordinary_rows(schedule(steps=400, closing_steps=33, batch=5)) == 42
