"""The gate reads validation text that nothing has learned from, as much as it needs, and leaves the model as it was."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from comigs_edge.arrays import digest
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.fleet import gate
from comigs_edge.fleet.gate import GATE_ROWS, MAX_GATE_ROWS, compare
from comigs_edge.nn.model import Model
from comigs_edge.training.batches import Rows
from comigs_edge.training.trainer import Trainer
from tests.training.test_trainer import rows, schedule


def sparse(tokens=6000):
    """Rows of which some have many tokens that count and some few."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 60, (tokens,), generator=generator).tolist()
    return Rows([Encoded(ids, [place // 50 % 2 == 0 or place % 9 == 0 for place in range(tokens)])], 32, 0)


@pytest.fixture
def trainer(tiny_base, make_adapters):
    def make(validation_rows=1000, text=None):
        plan = schedule(validation_rows=validation_rows)
        return Trainer(Model(tiny_base, make_adapters()), rows(1), text or sparse(), plan)

    return make


def changed(trainer, by):
    return {name: array * np.float32(1 + by) for name, array in trainer.adapters.generalist().items()}


def cross_entropy(trainer, generalist, count):
    """Mean loss of the first `count` validation rows, by torch, with this generalist."""
    before, total, tokens = trainer.adapters.generalist(), 0.0, 0
    trainer.adapters.load_generalist(generalist)
    with torch.no_grad():
        for batch in trainer.validation.rows.first(count, 1):
            logits = trainer.model.logits(trainer.model(batch.tokens, batch.documents).hidden)
            total += float(F.cross_entropy(logits[batch.scored], batch.targets[batch.scored], reduction="sum"))
            tokens += int(batch.scored.sum())
    trainer.adapters.load_generalist(before)
    return total / tokens


def test_the_losses_are_means_over_tokens_and_the_model_stays_as_it_was(trainer):
    one = trainer()
    kept, worse = one.adapters.generalist(), changed(one, 3.0)
    before = digest(one.adapters.arrays())
    found = compare(one, -1e9, [kept], worse)  # clear at once
    assert digest(one.adapters.arrays()) == before
    assert found.before == pytest.approx(cross_entropy(one, kept, GATE_ROWS), rel=1e-5)
    assert found.after == pytest.approx(cross_entropy(one, worse, GATE_ROWS), rel=1e-5)
    assert found.before_is_present


def test_the_new_one_is_compared_with_the_better_of_those_before(trainer):
    one = trainer()
    zero, large, new = (changed(one, by) for by in (-1.0, 5.0, 2.0))
    better, worse = sorted((zero, large), key=lambda each: cross_entropy(one, each, GATE_ROWS))
    for before, is_present in (([better, worse], True), ([worse, better], False)):
        found = compare(one, 1e9, before, new)
        assert found.before == pytest.approx(cross_entropy(one, better, GATE_ROWS), rel=1e-5)
        assert found.before_is_present == is_present
    assert compare(one, 1e9, [worse], better).before == pytest.approx(cross_entropy(one, worse, GATE_ROWS), rel=1e-5)


def read(monkeypatch, trainer, gate_at, after):
    """How many rows a comparison reads."""
    groups, measure = set(), trainer.validation.mean_loss

    def watched(batches, *rest):
        groups.update(place for batch in batches for place in batch.places)
        return measure(batches, *rest)

    monkeypatch.setattr(trainer.validation, "mean_loss", watched)
    compare(trainer, gate_at, [trainer.adapters.generalist()], after)
    return groups


def test_more_rows_are_read_only_where_few_do_not_tell(trainer, monkeypatch):
    one = trainer()
    worse = changed(one, 1.0)
    harm = cross_entropy(one, worse, MAX_GATE_ROWS) - cross_entropy(one, one.adapters.generalist(), MAX_GATE_ROWS)
    assert abs(harm) > 1e-3
    assert len(read(monkeypatch, one, harm + 100.0, worse)) == GATE_ROWS
    assert len(read(monkeypatch, one, harm, worse)) == MAX_GATE_ROWS


def test_no_row_is_read_that_the_router_learns_from(trainer, monkeypatch):
    one = trainer(text=rows(2, 1400))
    learned = {place for number in range(len(one.router_rows)) for place in one.router_rows.batch(number, 1).places}
    monkeypatch.setattr(gate, "_is_clear", lambda *_: False)
    found = read(monkeypatch, one, 0.0, changed(one, 1.0))
    assert GATE_ROWS < one.validation.measured_rows < MAX_GATE_ROWS
    assert len(found) == one.validation.measured_rows
    assert not found & learned
