"""Ordinary text: the base's own answers, made once and kept."""

import json

import pytest

from benchmarks.trials.text import INSTRUCTIONS
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.training import ordinary
from comigs_edge.training.ordinary import Asked, OrdinaryText, ask, instructions
from tests.conftest import llama_logits
from tests.tiny import write_llama


@pytest.fixture
def asked(tiny_path):
    return ask(Tokenizer(tiny_path), "learning")


@pytest.fixture
def text(tiny_path):
    tokenizer = Tokenizer(tiny_path)
    return lambda folder, tokens=400, part="learning", sha256="a" * 64: OrdinaryText(folder, sha256, part, tokens, tokenizer)


def test_instructions_are_each_there_once_and_those_of_the_test_are_no_others():
    learning, test = instructions("learning"), instructions("test")
    assert len({*learning, *test}) == len(learning) + len(test) > 200
    assert len(test) == (len(learning) + len(test)) // 8
    assert not any(line.startswith("#") for line in (*learning, *test))
    assert {*learning, *test}.isdisjoint(INSTRUCTIONS)  # what the trials measure was never learned


def test_the_base_is_asked_in_its_own_template_as_llama_cpps_tokenizer_reads_it(tiny_path, asked):
    pieces = [Tokenizer(tiny_path).piece(token).decode() for token in asked.prompts[0]]
    assert "".join(pieces) == f"<|im_start|>user\n{instructions('learning')[0]}<|im_end|>\n<|im_start|>assistant\n"
    assert asked.ends == {0, 2}  # <|endoftext|> and <|im_end|>, by llama.cpp's list


def test_however_long_an_instruction_is_there_is_room_for_an_answer(asked, tiny_path, monkeypatch):
    monkeypatch.setattr(ordinary, "LENGTH", 60)
    short = ask(Tokenizer(tiny_path), "learning").prompts
    assert short == [prompt[:59] for prompt in asked.prompts] != asked.prompts


def test_a_base_without_a_template_writes_from_its_start_token(tmp_path):
    path = write_llama(tmp_path / "base.gguf", template=None)
    assert ask(Tokenizer(path), "learning").prompts == [[1]]


def test_answers_are_scored_where_the_base_wrote_and_end_where_it_did(tmp_path, tiny_base, tiny_path, text):
    short = Asked([[5, 90], [7, 8, 9]], frozenset({2}))
    made = text(tmp_path, 2000)
    made.asked = short
    made.make(tiny_base)
    assert 2000 <= made.num_tokens < 2000 + 64 * ordinary.LENGTH
    for number, (ids, scored, _) in enumerate(made.answers):
        prompt = short.prompts[number % 2]
        assert ids[: len(prompt)] == prompt
        assert scored == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
        assert 2 not in ids[len(prompt) : -1]
        assert len(ids) == ordinary.LENGTH or ids[-1] == 2
    assert llama_logits(tiny_path, ids).isfinite().all()


def test_answers_begin_as_often_with_a_token_as_llama_cpp_finds_it_likely(tmp_path, tiny_base, tiny_path, text):
    made = text(tmp_path, 6000)
    made.asked = Asked([[5, 90]], frozenset(range(tiny_base.hparams.vocab_size)))  # an answer ends with its first token
    made.make(tiny_base)
    written = [ids[2:] for ids, *_ in made.answers]
    assert {len(answer) for answer in written} == {1}
    likely = llama_logits(tiny_path, [5, 90])[-1].softmax(-1)
    for token in likely.topk(3).indices.tolist():
        share = float(likely[token])
        assert abs(written.count([token]) / len(written) - share) < 4 * (share * (1 - share) / len(written)) ** 0.5


def test_what_is_shown_of_a_making_never_goes_back_where_answers_are_short(tmp_path, tiny_base, text):
    made, seen = text(tmp_path, 2000), []
    made.asked = Asked([[5, 90]], frozenset(range(0, tiny_base.hparams.vocab_size, 8)))
    made.make(tiny_base, lambda done, total: seen.append(done))
    assert made.num_tokens / len(made.answers) < ordinary.LENGTH / 4
    assert seen == sorted(seen)
    assert seen[-1] == 2000


def test_a_base_without_a_template_never_writes_the_same_twice(tmp_path, tiny_base, text, monkeypatch):
    monkeypatch.setattr(ordinary, "rows_at_once", lambda base, length: 4)
    made = text(tmp_path, 20 * ordinary.LENGTH)
    made.asked = Asked([[1]], frozenset())
    made.make(tiny_base)
    assert len({tuple(ids) for ids, *_ in made.answers}) == len(made.answers) == 20


def test_a_making_that_was_killed_goes_on_to_the_same_text(tmp_path, tiny_base, text, monkeypatch):
    monkeypatch.setattr(ordinary, "rows_at_once", lambda base, length: 4)
    straight, seen = text(tmp_path / "one", 2000), []
    straight.make(tiny_base, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (2000, 2000)
    assert len(set(seen)) > 100  # also while rows are written, which takes a small board minutes

    def killed(done, total):
        if cut.num_tokens > before:
            raise KeyboardInterrupt

    cut = text(tmp_path, 2000)
    for _ in range(2):
        before = cut.num_tokens
        with pytest.raises(KeyboardInterrupt):
            cut.make(tiny_base, killed)
        cut = text(tmp_path, 2000)
        assert 0 < cut.num_tokens < 2000
    cut.make(tiny_base)
    assert cut.answers == straight.answers == text(tmp_path, 2000).answers
    more = text(tmp_path, 2500)
    more.make(tiny_base)
    assert more.answers[: len(cut.answers)] == cut.answers
    assert text(tmp_path, 2000).answers == cut.answers  # no more than are wanted


def test_a_complete_text_is_not_made_again_and_a_damaged_one_is(tmp_path, tiny_base, text):
    made = text(tmp_path)
    made.make(tiny_base)
    before = made.path.stat().st_mtime_ns
    again = text(tmp_path)
    assert again.is_complete
    again.make(tiny_base)
    assert made.path.stat().st_mtime_ns == before
    for damage in (b"", b"[[1, 2", json.dumps([1, 2]).encode()):
        made.path.write_bytes(damage)
        assert text(tmp_path).answers == []


def test_where_the_disk_refuses_the_text_is_there_all_the_same(tmp_path, tiny_base, text):
    (tmp_path / "file").write_text("")  # no folder can be made here
    made = text(tmp_path / "file")
    made.make(tiny_base)
    assert made.is_complete


def test_a_home_keeps_the_text_of_one_base_and_both_parts_of_it(tmp_path, tiny_base, text):
    for part, sha256 in (("learning", "a" * 64), ("test", "a" * 64), ("learning", "b" * 64)):
        text(tmp_path, 100, part, sha256).make(tiny_base)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"ordinary-learning-{'b' * 16}.json", f"ordinary-test-{'a' * 16}.json"
    ]  # fmt: skip
