"""The first routers of a zero expert are those that numpy's least squares finds, from what a model's routers read."""

import numpy as np
import pytest
import torch

from comigs_edge.arrays import digest
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import is_router
from comigs_edge.nn.model import Model
from comigs_edge.training import silence
from comigs_edge.training.batches import Rows
from comigs_edge.training.silence import fit_zero

FORMS = {"lora": {"attention": True}, "parallel": {"form": "parallel"}}


def words(seed, first, tokens):
    """Two documents of 60 words of their own."""
    ids = torch.randint(first, first + 60, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Rows([Encoded(part, [True] * len(part)) for part in (ids[:100], ids[100:])], 32, 0)


class Counting(Model):
    """A model that says which batches it reads."""

    def __init__(self, base, adapters, passes):
        super().__init__(base, adapters)
        self.passes = passes

    def __call__(self, tokens, documents=None, *arguments):
        self.passes.append(tokens)
        return super().__call__(tokens, documents, *arguments)


@pytest.fixture(scope="module")
def own():
    return words(1, 3, 600)  # 19 rows, all of which are read


@pytest.fixture(scope="module")
def ordinary():
    return words(2, 200, 3000)  # 94 rows, of which 32 are read


def read_by(model, text, adapters):
    """Block -> what its router reads in the first 32 rows (N, D), and what it answers for each expert (N, E)."""
    read = {block: [] for block in range(adapters.first_block, 2)}
    model.watch = lambda block, normed, _: read[block].append(normed.double().numpy().copy())
    with torch.no_grad():
        for batch in text.first(32, 8):
            model(batch.tokens, batch.documents)
    inputs = {block: np.concatenate(parts) for block, parts in read.items()}
    return {block: (x, x @ adapters.routers[block][:-1].double().numpy().T) for block, x in inputs.items()}


def read_texts(base, adapters, own, ordinary):
    """What is read of either text: their own by the experts without a zero expert, ordinary text by the base."""
    personal, silent = Model(base, adapters.without_zero()), Model(base, copied(adapters.without_zero()))
    for tensor in silent.adapters.group(router=False):
        tensor.zero_()
    batch = ordinary.batch(0, 4)
    with torch.no_grad():
        torch.testing.assert_close(*(each(batch.tokens, batch.documents).hidden for each in (silent, Model(base, None))))
    return read_by(personal, own, adapters), read_by(silent, ordinary, adapters)


def copied(adapters):
    return Adapters.from_arrays(adapters.layout, adapters.hparams, adapters.arrays())


def numpys(*texts):
    """The row of a router (D,) that answers 3 less than the largest expert's does to the first text, and 3 more to the second.

    The texts count alike, and the squares of the row a tenth of the mean square of the inputs.
    """
    inputs = [x / np.sqrt(len(x)) for x, _ in texts]
    wanted = [(logits.max(1) + margin) / np.sqrt(len(x)) for (x, logits), margin in zip(texts, (-3, 3), strict=True)]
    width = inputs[0].shape[1]
    ridge = np.sqrt(0.1 * sum(np.square(x).sum() for x in inputs) / width) * np.eye(width)
    return np.linalg.lstsq(np.concatenate([*inputs, ridge]), np.concatenate([*wanted, np.zeros(width)]), rcond=None)[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("specialists", "blocks"), [(0, 0), (1, 0), (2, 1)])
def test_the_zero_experts_rows_are_those_of_numpys_least_squares(
    tiny_base, make_adapters, own, ordinary, form, specialists, blocks
):
    adapters = make_adapters(specialists, zero=True, blocks=blocks, **FORMS[form])
    before = copied(adapters)
    fit_zero(adapters, own, ordinary, 4, lambda each: Model(tiny_base, each))
    theirs, of_base = read_texts(tiny_base, before, own, ordinary)
    assert theirs.keys() == of_base.keys() == set(range(adapters.first_block, 2))
    for block in theirs:
        found, expected = adapters.routers[block][-1].numpy(), numpys(theirs[block], of_base[block])
        assert found == pytest.approx(expected, abs=1e-3 * float(np.abs(expected).max()))
    for name, tensor in adapters.named.items():  # nothing else is written
        assert torch.equal(*(each[:-1] if is_router(name) else each for each in (tensor, before.named[name])))


def test_it_is_silent_on_ordinary_text_and_absent_from_the_devices_own(tiny_base, make_adapters, own, ordinary):
    adapters = make_adapters(1, form="parallel", zero=True)
    fit_zero(adapters, own, ordinary, 4, lambda each: Model(tiny_base, each))
    for read, sign in zip(read_texts(tiny_base, adapters, own, ordinary), (-1, 1), strict=True):
        for block, (x, logits) in read.items():
            above = x @ adapters.routers[block][-1].double().numpy() - logits.max(1)
            assert 0.75 < sign * above.mean() < 3  # of 3: random words of a random base tell the texts apart in part
            assert (sign * above > 0).mean() > 0.65


def test_blocks_whose_sums_have_no_room_together_are_fitted_one_after_the_other(
    tiny_base, make_adapters, own, ordinary, monkeypatch
):
    found = []
    for room in (silence.BYTES, 1):
        monkeypatch.setattr(silence, "BYTES", room)
        adapters, passes = make_adapters(1, form="parallel", zero=True), []
        fit_zero(adapters, own, ordinary, 4, lambda each, passes=passes: Counting(tiny_base, each, passes))
        found.append((digest(adapters.arrays()), len(passes)))
    assert found == [(found[0][0], 13), (found[0][0], 26)]  # 19 and 32 rows, 4 at once: 5 and 8 batches
