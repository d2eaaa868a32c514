"""Bits per byte, worked out by hand and against llama.cpp."""

import math

import pytest
import torch

from comigs_edge.data.document import Document, Message
from comigs_edge.data.tokenizer import Encoded, Tokenizer
from comigs_edge.inference import evaluate
from comigs_edge.inference.evaluate import Score, in_llama_cpp, in_torch, prepare
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import open_base
from tests.conftest import llama_logits
from tests.tiny import some_text


@pytest.fixture
def tokenizer(tiny_path):
    return Tokenizer(tiny_path)


def test_bits_per_byte_by_hand():
    score = Score(nats=8 * math.log(2), num_tokens=4, num_bytes=16)
    assert score.bits_per_byte == pytest.approx(0.5)
    assert score.perplexity == pytest.approx(4.0)


def test_every_token_but_the_first_is_predicted_once(tokenizer):
    text = "the hen rests on a stone and then enters the inn"
    encoded = tokenizer.encode(Document(text=text))
    prepared = prepare([encoded], tokenizer, 5, 1000)
    assert prepared.num_tokens == len(encoded.ids) - 1
    assert prepared.num_bytes == len(text) - len(tokenizer.piece(encoded.ids[0]))
    assert [len(window.ids) for window in prepared.windows[:-1]] == [6] * (len(prepared.windows) - 1)
    assert [window.ids[0] for window in prepared.windows] == encoded.ids[:-1][::5]


def test_torch_and_llama_cpp_measure_the_same(tiny_path, tiny_base, tokenizer):
    encoded = [tokenizer.encode(Document(text=some_text(2, seed))) for seed in range(3)]
    text = prepare(encoded, tokenizer, 64, 1500)
    ours, theirs = in_torch(Model(tiny_base, None), text), in_llama_cpp(tiny_path, text, 1)
    assert ours.nats == pytest.approx(theirs.nats, rel=1e-4)
    first = text.windows[0]
    by_hand = torch.nn.functional.cross_entropy(llama_logits(tiny_path, first.ids[:-1]), torch.tensor(first.ids[1:]))
    alone = prepare([Encoded(first.ids, [True] * len(first.ids))], tokenizer, 64, 1500)
    assert in_llama_cpp(tiny_path, alone, 1).nats == pytest.approx(float(by_hand) * 64, rel=1e-4)


def test_windows_that_are_read_together_measure_what_each_does_alone(tiny_base, tokenizer, monkeypatch):
    """As on a GPU: padded to the longest, which changes nothing before it."""
    encoded = [tokenizer.encode(Document(text=some_text(2, seed)[: 300 * (seed + 1)])) for seed in range(3)]
    text, model = prepare(encoded, tokenizer, 64, 1500), Model(tiny_base, None)
    alone, groups = in_torch(model, text), evaluate.groups
    monkeypatch.setattr(evaluate, "groups", lambda windows, tokens: groups(windows, 200))
    together = in_torch(model, text)
    assert len({len(window.ids) for window in text.windows}) > 2
    assert together.windows == pytest.approx(alone.windows, rel=1e-5)
    assert sum(alone.windows) == alone.nats


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_measures_what_the_processor_does(tiny_path, tiny_base, tokenizer):
    text = prepare([tokenizer.encode(Document(text=some_text(3, seed))) for seed in range(9)], tokenizer, 64, 9000)
    there = in_torch(Model(open_base(tiny_path, device="cuda"), None), text)
    assert there.windows == pytest.approx(in_torch(Model(tiny_base, None), text).windows, rel=1e-3)


def test_of_a_chat_the_answer_alone_is_measured_in_torch_and_in_llama_cpp(tiny_path, tiny_base, tokenizer):
    messages = (Message("user", "the inn?" * 20), Message("assistant", "then an ant"), Message("user", "on?"))
    chat = tokenizer.encode(Document(messages=messages))
    text = prepare([chat], tokenizer, 512, 1000)
    answer = [place for place, counts in enumerate(chat.scored) if counts]
    assert (text.num_tokens, text.num_bytes) == (len(answer), len("then an ant"))
    logits = llama_logits(tiny_path, chat.ids[:-1]).log_softmax(-1)
    wanted = -sum(float(logits[place - 1, chat.ids[place]]) for place in answer)
    assert in_torch(Model(tiny_base, None), text).nats == pytest.approx(wanted, rel=1e-4)
    assert in_llama_cpp(tiny_path, text, 1).nats == pytest.approx(wanted, rel=1e-3)
    narrow = prepare([chat], tokenizer, 16, 1000)  # windows with nothing of the answer are not read at all
    assert all(any(window.scored) for window in narrow.windows)
    assert (narrow.num_tokens, narrow.num_bytes) == (text.num_tokens, text.num_bytes)


def test_no_more_tokens_are_measured_than_the_settings_say(tokenizer):
    encoded = [tokenizer.encode(Document(text=some_text(1, seed))) for seed in range(9)]
    text = prepare(encoded, tokenizer, 64, 500)
    assert 400 < sum(len(window.ids) for window in text.windows) <= 500
    assert len(prepare(encoded, tokenizer, 64, 1).windows) == 1  # but one at least


def test_text_of_tokens_that_write_nothing_has_a_byte_to_be_measured_by(tokenizer):
    silent = next(token for token in range(300) if not tokenizer.written_bytes(token))
    text = prepare([Encoded([20, silent, silent], [True] * 3)], tokenizer, 4, 9)
    assert (text.num_tokens, text.num_bytes) == (2, 1)


def test_windows_that_are_read_together_are_as_long_as_each_other_the_longest_first():
    windows = [evaluate.Window([0] * length, []) for length in (2, 8, 3, 9, 20)]
    assert list(evaluate.groups(windows, 18)) == [[4], [3, 1], [2, 0]]


def test_behind_a_window_that_is_too_many_the_next_document_is_read_on(tokenizer):
    """Windows of four predictions; of the first document the third would fit where the second does not."""
    long, short = Encoded(list(range(10, 22)), [True] * 12), Encoded([30, 31, 32], [True] * 3)
    text = prepare([long, short, short], tokenizer, 4, 9)
    assert [window.ids for window in text.windows] == [[10, 11, 12, 13, 14], [30, 31, 32]]
    assert (text.documents, text.num_tokens) == ((0, 1), 4 + 2)
    whole = prepare([long, short], tokenizer, 4, 17)
    assert [window.ids[0] for window in whole.windows] == [10, 14, 18, 30]
    assert [len(window.ids) for window in whole.windows] == [5, 5, 4, 3]
