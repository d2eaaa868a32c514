"""What test text has in common with learned text, word by word, is read and not scored."""

import random

import pytest

from comigs_edge.data import documents
from comigs_edge.data.corpus import SPLITS, Corpus
from comigs_edge.data.document import Document, Message
from comigs_edge.data.passages import find_passages, share_of_passages
from comigs_edge.data.runs import runs_of
from comigs_edge.data.tokenizer import Tokenizer, encode
from tests.data.test_leaks import chat, say, words_of, write, write_glued
from tests.tiny import write_llama


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(write_llama(tmp_path_factory.mktemp("base") / "base.gguf"))


def scored_text(tokenizer, encoded):
    return b"".join(tokenizer.piece(token) for token, scored in zip(encoded.ids, encoded.scored, strict=True) if scored).decode()


def disclaimers(rng, count=60):
    shared = say(rng, 120)
    return [{"text": f"{say(rng, 30)}\n\n{shared[:300]}\n{shared[300:]}"} for _ in range(count)]


def add(tmp_path, records, *shares):
    corpus = Corpus(tmp_path / "documents.db", *shares)
    corpus.add(documents.read([write(tmp_path / "a.jsonl", records)]))
    return corpus


@pytest.mark.parametrize("split", SPLITS[1:])
def test_a_disclaimer_under_every_mail_is_not_what_is_measured(tmp_path, tokenizer, split):
    records = disclaimers(random.Random(1))
    corpus = add(tmp_path, records, 0.6, 0.2)
    later = corpus.documents(split)
    assert len(later) > 3
    for document, encoded in zip(later, encode(corpus, tokenizer, split, []), strict=True):
        own, _, _ = document.text.partition("\n\n")
        assert scored_text(tokenizer, encoded).strip() == own
    assert 0.7 < share_of_passages(later, corpus.learned_runs(split)) < 0.9


def test_what_is_learned_is_scored_whole(tmp_path, tokenizer):
    records = disclaimers(random.Random(1))
    corpus = add(tmp_path, records, 0.6, 0.2)
    for document, encoded in zip(corpus.documents("training"), encode(corpus, tokenizer, "training", []), strict=True):
        assert scored_text(tokenizer, encoded).strip() == document.text


def test_a_signature_in_an_answer_is_read_and_its_end_still_counts(tmp_path, tokenizer):
    rng = random.Random(2)
    shared = say(rng, 60)
    corpus = add(tmp_path, [chat(say(rng, 12), f"{say(rng, 40)}\n{shared}") for _ in range(60)], 0.6, 0.2)
    for document, encoded in zip(corpus.documents("test"), encode(corpus, tokenizer, "test", []), strict=True):
        own, _, _ = document.messages[1].content.partition("\n")
        assert scored_text(tokenizer, encoded).replace("\n", "") == f"{own}<|im_end|>"


def test_a_third_of_a_text_that_was_learned_is_not_measured(tmp_path, tokenizer):
    rng = random.Random(3)
    texts = [say(rng, 100) for _ in range(60)]
    corpus = add(tmp_path, [{"text": text} for text in texts], 0.6, 0.2)
    learned = [document.text for document in corpus.documents("training")]
    quotes = [f"{' '.join(learned[n % len(learned)].split()[:35])} {say(rng, 80)}" for n in range(30)]
    corpus.training, corpus.validation = 0.0, 0.0
    corpus.add(documents.read([write(tmp_path / "b.jsonl", [{"text": text} for text in quotes])]))
    tested = [document.text for document in corpus.documents("test")]
    assert set(tested) & set(quotes)
    for text, encoded in zip(tested, encode(corpus, tokenizer, "test", []), strict=True):
        expected = " ".join(text.split()[35:]) if text in quotes else text
        assert scored_text(tokenizer, encoded).strip() == expected


def test_a_passage_of_learned_text_that_is_gone_is_not_measured(tmp_path):
    rng = random.Random(4)
    corpus = add(tmp_path, [{"text": say(rng, 60)} for _ in range(40)], 0.6, 0.2)
    gone = words_of(corpus.documents("training")[0])
    corpus.remove(1)
    shared = " ".join(gone.split()[:40])
    later = [{"text": f"{shared} {say(rng, 100)}"}, *({"text": say(rng, 60)} for _ in range(20))]
    corpus.training, corpus.validation = 0.0, 0.0
    corpus.add(documents.read([write(tmp_path / "b.jsonl", later)]))
    assert set(runs_of(shared)) <= set(corpus.learned_runs("test")) | set(corpus.learned_runs("validation"))


@pytest.mark.parametrize("between", [" ", "\n", " \u00ad", "  **"])
def test_a_passage_has_its_place_in_the_text_as_it_is_written(between):
    rng = random.Random(5)
    shared, before, after = say(rng, 50), say(rng, 9), say(rng, 9)
    text = f"{before}. ({between.join(shared.upper().split())}) {after}"
    ((start, end),) = find_passages(text, runs_of(f"x {shared} y"))
    assert text[start:end].strip("()") == between.join(shared.upper().split())


@pytest.mark.parametrize(("count", "found"), [(31, 0), (32, 1)])
def test_fewer_words_than_a_passage_has_may_be_a_chance(count, found):
    shared = say(random.Random(6), count)
    assert len(list(find_passages(f"one {shared} two", runs_of(f"three {shared} four")))) == found


@pytest.mark.parametrize("script", [(0xE01, 0xE2E), (0x3041, 0x3093), (0x4E00, 0x5200)])
def test_a_passage_in_a_script_without_spaces_is_found(script):
    rng = random.Random(7)
    text = write_glued(rng, *script, 300)
    shared = text[100:200]
    ((start, end),) = find_passages(text[:200] + "。", runs_of(shared))
    assert 100 <= start <= 102
    assert 190 <= end <= 200


def test_of_a_chat_only_answers_count_in_the_share_that_was_learned():
    shared = say(random.Random(8), 50)
    talk = Document(messages=(Message("user", shared), Message("assistant", "x" * len(shared)), Message("assistant", "", False)))
    assert share_of_passages([talk], runs_of(shared)) == 0
    assert share_of_passages([Document(text=shared), talk], runs_of(shared)) == pytest.approx(0.5)
