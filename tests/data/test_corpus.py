"""Splits are stable, duplicates stay out, and adding is all or nothing."""

import re
import stat

import numpy as np
import pytest

from comigs_edge.data import documents
from comigs_edge.data.corpus import SPLITS, Corpus
from comigs_edge.data.enough import find_missing
from comigs_edge.errors import ComigsError


def words(seed, count=60):
    rng = np.random.default_rng(seed)
    return " ".join("".join(map(chr, rng.integers(97, 123, 5))) for _ in range(count))


@pytest.fixture
def corpus(tmp_path):
    return Corpus(tmp_path / "data" / "documents.db")


@pytest.fixture
def add(tmp_path, corpus):
    def make(name, *texts):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(f'{{"text": "{text}"}}' for text in texts))
        return corpus.add(documents.read([path]))

    return make


def where(corpus):
    return {document.text: split for split in SPLITS for document in corpus.documents(split)}


def test_shares_are_near_80_10_10_and_a_document_stays_in_its_split(add, corpus):
    add("a.jsonl", *(words(seed) for seed in range(400)))
    counts = [corpus.sizes()[split]["documents"] for split in SPLITS]
    assert sum(counts) == 400
    assert 300 <= counts[0] <= 340
    assert all(22 <= count <= 60 for count in counts[1:])
    before = where(corpus)
    add("b.jsonl", *(words(seed) for seed in range(400, 500)))
    after = where(corpus)
    assert all(after[text] == split for text, split in before.items())


def test_few_documents_still_fill_all_three_splits(add, corpus):
    add("a.jsonl", *(words(seed) for seed in range(3)))
    assert [corpus.sizes()[split]["documents"] for split in SPLITS] == [1, 1, 1]


def test_duplicates_and_near_duplicates_are_dropped_and_counted(add):
    text = words(1, 200)
    near = text.replace(" ", "  ", 3) + " and more"
    report = add("a.jsonl", text, text, near, words(2, 200))
    assert (report.added, report.repeats, report.duplicates, report.near_duplicates) == (2, 1, 0, 1)
    report = add("b.jsonl", text, near)
    assert (report.added, report.repeats, report.duplicates) == (0, 0, 2)


def test_a_file_that_is_added_again_replaces_itself(add, corpus):
    add("a.jsonl", words(1), words(2), words(3))
    report = add("a.jsonl", words(1) + " changed", words(4))
    assert report.added == 2
    assert set(where(corpus)) == {words(1) + " changed", words(4)}


def test_remove_forgets_a_file_and_its_text(add, corpus):
    add("a.jsonl", "the secret canary word " + words(1))
    add("b.jsonl", *(words(seed) for seed in range(2, 8)))
    source = corpus.sources()[0]
    assert corpus.remove(source["id"]) == [source["path"]]
    assert len(corpus.sources()) == 1
    assert b"canary" not in corpus.path.read_bytes()
    with pytest.raises(ComigsError, match="no file number 99"):
        corpus.remove(99)


def test_too_little_text_says_how_much_is_needed(add, corpus):
    add("a.jsonl", "few words", "other ones")
    with pytest.raises(ComigsError, match=r"2 documents.*at least 3 documents and 4,000 bytes"):
        corpus.check_enough()


@pytest.mark.parametrize(
    ("documents", "trained", "said"),
    [
        ((1, 1, 0), 100, "2 documents .*; at least 3 documents and 4,000 bytes of training text are needed"),
        ((1, 1, 0), 5000, "2 documents with 5,000 bytes .*; at least 3 documents are needed"),
        ((7, 1, 1), 100, "9 documents with 100 bytes .*; at least 4,000 bytes of training text are needed"),
        ((9, 0, 0), 5000, "validation and test would be empty: the 9 documents are too much alike"),
    ],
)
def test_only_limits_that_are_not_met_are_named(documents, trained, said):
    sizes = {split: {"documents": count, "bytes": trained} for split, count in zip(SPLITS, documents, strict=True)}
    assert re.match(said, find_missing(sizes, learned=0, has_local=False))


def test_the_file_is_the_owners_alone(add, corpus):
    add("a.jsonl", words(1))
    assert stat.S_IMODE(corpus.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(corpus.path.parent.stat().st_mode) == 0o700


def test_of_two_texts_with_four_fifths_in_common_the_later_one_is_used(add, corpus):
    text = words(1, 200)
    tokens = text.split()
    later = " ".join([*tokens[:180], *words(2, 20).split()])  # 178 of 198 runs, a Jaccard similarity of 0.82
    report = add("a.jsonl", text, later, words(3, 200))
    assert (report.added, report.near_duplicates) == (2, 1)
    assert later in where(corpus)
    other = " ".join([*tokens[:100], *words(4, 100).split()])  # a half: not the same text, and one group
    assert add("b.jsonl", other).added == 1
    assert where(corpus)[other] == where(corpus)[later]


def test_texts_that_differ_in_capitals_alone_are_one(add):
    assert add("a.jsonl", words(1), words(1).upper(), words(2)).near_duplicates == 1
