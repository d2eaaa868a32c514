"""Which expert speaks: against the routing rule in numpy, and routers that are made to choose."""

import numpy as np
import pytest
import torch

from comigs_edge.data.document import Document, Message
from comigs_edge.data.tokenizer import Encoded, Tokenizer
from comigs_edge.errors import ComigsError
from comigs_edge.inference.explain import cut, decode, explain
from comigs_edge.nn.model import Model

IDS = [[40, 41, 42, 43, 44, 45], [70, 71, 72]]
PIECES = [b"x"] * 9


def inputs(model, ids):
    """What the router of each block reads, (T, D)."""
    read = {}
    model.watch = lambda block, normed, routing: read.__setitem__(block, normed.clone())
    with torch.no_grad():
        model(torch.tensor([ids]))
    model.watch = None
    return read


def by_hand(router, normed, k):
    """The softmax over the k largest logits of each token, in numpy."""
    logits = normed.numpy().astype(np.float64) @ router.numpy().astype(np.float64).T
    weights = np.zeros_like(logits)
    for row, each in zip(weights, logits, strict=True):
        chosen = np.argsort(each)[-k:]
        row[chosen] = np.exp(each[chosen] - each.max()) / np.exp(each[chosen] - each.max()).sum()
    return weights


def test_weights_are_those_of_the_routing_rule_for_each_token_block_and_expert(tiny_base, make_adapters):
    adapters = make_adapters(specialists=3, k=2, form="parallel")
    model = Model(tiny_base, adapters)
    found = explain(model, IDS, PIECES)
    assert found.experts == ("generalist", "specialist 1", "specialist 2", "specialist 3")
    assert (found.blocks, found.weights.shape, found.documents) == ((0, 1), (9, 2, 4), [0] * 6 + [1] * 3)
    for block in found.blocks:
        rows = [by_hand(adapters.routers[block], inputs(model, ids)[block], 2) for ids in IDS]
        np.testing.assert_allclose(found.weights[:, block], np.concatenate(rows), atol=1e-5)
        assert found.speakers(block) == np.concatenate(rows).argmax(-1).tolist()
        np.testing.assert_allclose(found.shares()[block], np.concatenate(rows).mean(0), atol=1e-5)
    assert model.watch is None


@pytest.mark.parametrize("speaker", [0, 1, 2])
def test_the_expert_that_a_router_is_made_to_choose_is_the_one_that_speaks(tiny_base, make_adapters, speaker):
    adapters = make_adapters(form="parallel", zero=True)
    model = Model(tiny_base, adapters)
    normed = inputs(model, IDS[0])[0][3]  # block 0 reads the same whatever its router says
    adapters.routers[0].zero_()
    adapters.routers[0][speaker] = normed  # a logit of the vector's own length, squared; 0 for the others
    found = explain(model, IDS[:1], PIECES[:6])
    assert found.experts == ("generalist", "specialist 1", "base alone")
    assert found.speakers(0)[3] == speaker
    assert found.weights[3, 0, speaker] == pytest.approx(1)


def test_blocks_without_experts_are_not_explained(tiny_base, make_adapters):
    found = explain(Model(tiny_base, make_adapters(blocks=1)), IDS, PIECES)
    assert (found.blocks, found.shown) == ((1,), [0])


def test_a_generalist_alone_is_nothing_to_explain(tiny_base, make_adapters):
    with pytest.raises(ComigsError, match="speaks for every token: there is nothing to explain"):
        explain(Model(tiny_base, make_adapters(specialists=0)), IDS, PIECES)


def test_a_character_of_several_tokens_stands_with_the_last_of_them():
    assert decode([b"gr", b"\xc3", b"\xbc", b"n", b"\xe2\x82"]) == ["gr", "", "ü", "n", "�"]


def test_no_more_tokens_are_taken_than_asked_for_and_what_is_cut_is_known():
    def documents(*lengths):
        return (Encoded(list(range(length)), []) for length in lengths)

    assert cut(documents(3, 0, 2), 5) == ([[0, 1, 2], [0, 1]], False)
    assert cut(documents(3, 2), 4) == ([[0, 1, 2], [0]], True)
    assert cut(documents(3, 2), 3) == ([[0, 1, 2]], True)
    unread = documents(9, 9)
    assert cut(unread, 4) == ([[0, 1, 2, 3]], True)
    assert len(list(unread)) == 1  # the second was not even made


def test_a_chat_is_explained_in_the_template_that_training_has(tiny_path, tiny_base, make_adapters):
    tokenizer = Tokenizer(tiny_path)
    chat = tokenizer.encode(Document(messages=(Message("user", "the inn?"), Message("assistant", "then an ant"))))
    pieces = [tokenizer.piece(token) for token in chat.ids]
    found = explain(Model(tiny_base, make_adapters()), [chat.ids], pieces)
    assert "".join(found.texts) == "<|im_start|>user\nthe inn?<|im_end|>\n<|im_start|>assistant\nthen an ant<|im_end|>\n"
