"""What a training has brought, against llama.cpp's logits and by hand."""

import math

import numpy as np
import pytest
import torch

from comigs_edge.data.document import Document, Message
from comigs_edge.data.tokenizer import Encoded, Tokenizer
from comigs_edge.export.merged import export
from comigs_edge.inference import evaluate
from comigs_edge.inference.evaluate import Window, in_llama_cpp, in_torch, prepare
from comigs_edge.inference.report import Expected, count_hits, expect, find, find_places, find_words, word_starts
from comigs_edge.nn.model import Model
from quantize.gguf_file import GGUFFile
from tests.conftest import llama_logits
from tests.tiny import some_text


@pytest.fixture
def tokenizer(tiny_path):
    return Tokenizer(tiny_path)


def test_each_token_has_the_probability_and_the_rank_of_llama_cpps_logits(tmp_path, tiny_path, tiny_base, make_adapters):
    adapters = make_adapters(form="parallel")
    export(GGUFFile(tiny_path), adapters, "F32", tmp_path / "out.gguf")
    ids = torch.randint(3, 260, (2, 200), generator=torch.Generator().manual_seed(2)).tolist()
    windows = [Window(row, [place % 3 > 0 for place in range(199)]) for row in ids]
    found = expect(Model(tiny_base, adapters), evaluate.TestText(windows, 1, 1))
    nats, ranks = [], []
    for window in windows:
        logits = llama_logits(tmp_path / "out.gguf", window.ids)
        for place, counts in enumerate(window.scored):
            if counts:
                token = window.ids[place + 1]
                nats.append(-float(logits[place].log_softmax(-1)[token]))
                ranks.append(int((logits[place] > logits[place, token]).sum()))
    np.testing.assert_allclose(found.nats, nats, rtol=1e-3, atol=1e-4)
    assert np.mean(found.ranks != ranks) < 0.02  # where two tokens are as likely but for the last bits


@pytest.mark.parametrize(
    ("pieces", "starts"),
    [
        (["the", " hen", " re", "sts", "."], {0, 1, 2}),
        (["the hen"], {0}),
        (["Don", "'t", " say", " (", "maybe", ")", " —", " ever"], {0, 2, 4, 7}),
        (["e", "-", "mail", "\n", "\n", "4", "2", " _", "_x"], {0, 5, 8}),
        ([" ", " ", "x", "y", " ", "z"], {2, 5}),
        (["..."], set()),
        ([], set()),
    ],
)
def test_a_word_begins_with_its_first_letter_or_digit_between_spaces(pieces, starts):
    assert word_starts([piece.encode() for piece in pieces]) == starts


def test_a_letter_in_several_tokens_begins_its_word_with_the_first_of_them():
    assert word_starts([b"gr\xc3", b"\xbcn", b" \xc3", b"\xbc", b"ber", b"\xff", b" a"]) == {0, 2, 6}


def test_of_a_chat_the_words_of_the_answer_are_counted_and_no_name_of_the_template(tokenizer):
    messages = (Message("user", "which inn then?"), Message("assistant", "the hen rests"))
    text = prepare([tokenizer.encode(Document(messages=messages))], tokenizer, 512, 1000)
    words = find_words(text, tokenizer)
    counted = [
        tokenizer.piece(token)
        for window in text.windows
        for token, counts in zip(window.ids[1:], window.scored, strict=True)
        if counts
    ]
    assert b"".join(counted).startswith(b"the hen rests")
    assert words.sum() == 3


def test_a_word_over_two_windows_counts_once_with_its_beginning(tokenizer):
    document = tokenizer.encode(Document(text="wwwww wwwww wwwww"))
    for context in range(8, 14):
        assert find_words(prepare([document], tokenizer, context, 1000), tokenizer).sum() == 2  # nothing predicts the first


def test_hits_are_words_whose_first_token_is_among_the_most_likely():
    expected = Expected(np.zeros(6), np.array([0, 0, 1, 2, 3, 9]))
    hits = count_hits(expected, np.array([True, False, True, True, True, True]))
    assert (hits.words, hits.hits) == (5, (1, 3))


def test_gains_are_quoted_from_the_largest_on_and_the_same_pair_of_tokens_once(tokenizer):
    ids = [token for piece in ("x", "a", "b", "x", "a") for token in tokenizer.encode(Document(text=piece)).ids]
    text = evaluate.TestText([Window(ids, [True] * 4), Window(ids[:3], [False, True])], 5, 5)
    before, after = np.array([0.5, 0.25, 0.1, 0.5, 0.2]), np.array([0.9, 0.5, 0.05, 0.8, 0.15])
    gained, lost = find_places(text, tokenizer, *(Expected(-np.log(each), np.zeros(5)) for each in (before, after)))
    assert [(place.before, place.token, place.after) for place in gained] == [("xa", "b", "xa"), ("x", "a", "bxa")]
    assert [(place.base, place.personal) for place in gained] == [pytest.approx((0.25, 0.5)), pytest.approx((0.5, 0.9))]
    assert [place.bits for place in gained] == [pytest.approx(1), pytest.approx(math.log2(0.9 / 0.5))]
    assert [(place.before, place.token, place.bits) for place in lost] == [
        ("xab", "x", pytest.approx(-1)),
        ("xa", "b", pytest.approx(math.log2(0.15 / 0.2))),
    ]


def test_scores_and_shares_are_those_of_other_ways_to_measure(tiny_path, tiny_base, tokenizer, make_adapters):
    encoded = [tokenizer.encode(Document(text=some_text(1, seed))) for seed in range(2)]
    text, adapters = prepare(encoded, tokenizer, 64, 600), make_adapters(specialists=2, k=2, form="parallel")
    counted = []
    found = find(tiny_base, adapters, None, text, tokenizer, counted.append)
    assert found.scores["base"].nats == pytest.approx(in_llama_cpp(tiny_path, text, 1).nats, rel=1e-3)
    for name, only in (("generalist", (0,)), ("specialists", (1, 2)), ("mixture", None)):
        assert found.scores[name].nats == pytest.approx(in_torch(Model(tiny_base, adapters, only), text).nats, rel=1e-5)
    assert sum(counted) == 4 * sum(len(window.ids) for window in text.windows)
    model, rows = Model(tiny_base, adapters), {0: [], 1: []}
    model.watch = lambda block, normed, routing: rows[block].append(routing.weights)
    in_torch(model, text)
    for block, shares in enumerate(found.shares):
        assert shares == pytest.approx(torch.cat(rows[block]).mean(0).tolist(), abs=1e-5)
        assert math.isclose(sum(shares), 1, abs_tol=1e-6)


def test_a_model_that_changes_nothing_has_gained_and_lost_nothing(tiny_base, tokenizer, make_adapters):
    adapters = make_adapters(specialists=0, form="parallel")
    for tensor in adapters.named.values():
        tensor.zero_()
    text = prepare([Encoded([5, 6, 7, 8], [True] * 4)], tokenizer, 64, 600)
    found = find(tiny_base, adapters, None, text, tokenizer, lambda tokens: None)
    assert (found.gained, found.lost, found.shares, found.scores["specialists"]) == ([], [], [], None)
    assert found.base_hits == found.personal_hits
