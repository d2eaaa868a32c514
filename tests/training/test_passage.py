"""Trainings one after the other read all of the text in turn, and the same again only when they have."""

import json
import re
import shutil
from itertools import pairwise

import pytest

from comigs_edge.arrays import digest
from comigs_edge.data.corpus import Corpus
from comigs_edge.data.tokenizer import Tokenizer, encode
from comigs_edge.home.folder import Home
from comigs_edge.planning.plan import resolve
from comigs_edge.training import opening as training
from comigs_edge.training.passage import Passage
from comigs_edge.training.text import read_rows
from tests.tiny import TEMPLATE, some_text, write_llama

STEPS, BATCH = 4, 4


@pytest.fixture
def home(ready):
    """A home whose trainings have four steps of four rows."""
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("# steps = 200", f"steps = {STEPS}"))
    home = Home(ready)
    home.state.mkdir(exist_ok=True)
    return home


@pytest.fixture
def long(home, run, tmp_path, monkeypatch):
    """The same with 80 texts, each with a number of its own; a training may read no more of them than its steps take."""
    monkeypatch.setattr(training, "TOKENS", 0)
    texts = [{"text": f"number {number} is here, " * 6 + "and on, " * 10} for number in range(80)]
    (tmp_path / "long.jsonl").write_text("\n".join(json.dumps(each) for each in texts))
    Corpus(home.documents_file).path.unlink()
    run("data", "add", tmp_path / "long.jsonl")
    return home


def open_training(home, resume=None):
    return training.open_training(home, resolve(home, home.settings(), lines=["threads=1", "zero_expert=false"]), resume=resume)


def train(home, resume=None, until=None):
    """Trains, to the end or until an expert step, and saves; returns the training and the places of the rows that it read."""
    run = open_training(home, resume)
    trainer = run.begin(None, resume)
    begin = trainer.expert_steps
    for _ in trainer.run(until):
        pass
    run.save()
    places = [run.rows[0].batch(number, BATCH).places for number in range(begin, trainer.expert_steps)]
    return run, [place for each in places for place in each]


def numbers(home, rows):
    """Which of the texts stand in these rows."""
    tokenizer = Tokenizer(home.base_file)
    tokens = [row for number in range(len(rows)) for row in rows.group(number, 1).tokens.tolist()]
    return {int(each) for row in tokens for each in re.findall(rb"number (\d+) is", b"".join(map(tokenizer.piece, row)))}


def test_a_passage_ends_behind_the_last_text_that_was_read_also_where_chats_were_left_out(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(tmp_path / "strict"))
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user begins') }}{% endif %}" + TEMPLATE
    run("init", "--base", write_llama(tmp_path / "strict.gguf", template=strict))
    said = some_text(60).split("\n\n")
    lines = [{"text": text} for text in said] + [{"messages": [{"role": "assistant", "content": text[::-1]}]} for text in said]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run("data", "add", tmp_path / "a.jsonl")
    home, refused = Home(tmp_path / "strict"), []
    tokenizer, documents = Tokenizer(home.base_file), Corpus(home.documents_file)
    found = list(encode(documents, tokenizer, "training", [], with_end=True))
    tokens = sum(len(each.ids) for each in found[:20])
    *_, passage = read_rows(home, home.settings(), 32, tokenizer, refused, lambda *_: None, tokens)
    kinds = [bool(each.messages) for each in documents.read("training")]  # refused or not
    number = next(count for count in range(len(kinds)) if kinds[:count].count(False) == 20)
    assert 0 < kinds[:number].count(True) < len(refused)  # of validation text some were left out too
    assert passage.end == documents.hash_of("training", "", number)


def test_trainings_on_the_same_text_read_each_row_once_before_any_twice(home):
    first, read = train(home)
    rows = len(first.rows[0])
    assert rows > 3 * STEPS * BATCH
    while len(read) + STEPS * BATCH <= rows:
        run, more = train(home)
        assert run.text == first.text
        assert not set(read) & set(more)
        read += more
    _, again = train(home, resume=False)
    assert again == read[: STEPS * BATCH]


def test_trainings_on_long_text_read_other_documents_until_all_were_read(long):
    there = {int(document.text.split()[1]) for document in Corpus(long.documents_file).documents("training")}
    assert len(there) > 50
    seen, passages = [], []
    for _ in range(30):
        run, _ = train(long)
        if run.passage.start not in passages:
            passages.append(run.passage.start)
            seen.append(numbers(long, run.rows[0]))
        if set().union(*seen) == there:
            break
    assert set().union(*seen) == there
    assert all(len(each) < 20 for each in seen)
    assert not any(one & other for one, other in pairwise(seen[:-1]))


def test_a_training_that_goes_on_in_long_text_is_resumed_bit_for_bit(long, tmp_path):
    run, _ = train(long)
    while run.passage == Passage(end=run.passage.end, rows=run.passage.rows):
        run, _ = train(long)
    shutil.copytree(long.root, tmp_path / "other")
    whole, _ = train(long)
    other = Home(tmp_path / "other")
    train(other, until=2)
    resumed, _ = train(other, resume=True)
    assert resumed.passage == whole.passage
    assert resumed.passage != run.passage
    assert not resumed.warnings
    assert digest(resumed.trainer.adapters.arrays()) == digest(whole.trainer.adapters.arrays())


def test_the_next_passage_begins_when_all_rows_of_one_were_read():
    one = Passage(start="a", end="b", rows=10, first_row=0)
    assert one.after(6) == Passage(start="a", end="b", rows=10, first_row=6)
    assert one.after(6).after(4) == Passage(start="b")
    assert Passage(rows=10).after(16) == Passage(rows=10, first_row=16)  # of text that is read whole there is no next one


def test_reading_is_shown_by_the_share_of_what_a_training_may_hold(long):
    corpus, shown = Corpus(long.documents_file), []
    texts = list(encode(corpus, Tokenizer(long.base_file), "training", [], lambda *where: shown.append(where), 1500))
    assert len(texts) < corpus.sizes()["training"]["documents"] / 3  # the limit ends it
    done = [number / total for number, total in shown]
    assert done == sorted(done)
    assert done[-1] == 1
    assert max(later - earlier for earlier, later in pairwise([0, *done])) < 3 / len(texts)


def test_the_hash_of_a_document_is_that_of_the_one_that_is_read(long):
    corpus = Corpus(long.documents_file)
    hashes = [document.sha256 for document in corpus.read("training")]
    turned = [document.sha256 for document in corpus.read("training", hashes[4])]
    assert turned == hashes[5:] + hashes[:5]
    assert [corpus.hash_of("training", hashes[4], number + 1) for number in range(len(turned))] == [*turned[:-1], ""]
