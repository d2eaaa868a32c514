"""What has learned removed text is found by the files that manifests and checkpoints name."""

import json
import random
import sqlite3
import time

import numpy as np
import pytest

from comigs_edge.data import documents
from comigs_edge.data.corpus import Corpus
from comigs_edge.home.folder import Home
from comigs_edge.training import checkpoint
from comigs_edge.training.learned import delete_remains, find_remains, join_learned
from tests.data.older import VERSION_3
from tests.data.test_leaks import say


def make(tmp_path, learned_by_version, in_training):
    """A home with three files of text, adapters and models whose manifests name what they learned, and a checkpoint."""
    home, rng = Home(tmp_path), random.Random(1)
    corpus = Corpus(home.documents_file)
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": say(rng, 20)}) for _ in range(9)))
        corpus.add(documents.read([tmp_path / f"{name}.jsonl"]))
    home.models.mkdir()
    for version, learned in learned_by_version.items():
        (home.adapters / f"{version:04d}").mkdir(parents=True)
        manifest = {"version": version, "base_sha256": "", "layout": {}, "sha256": ""} | (
            {} if learned is None else {"learned": learned}
        )
        (home.adapters / f"{version:04d}" / "manifest.json").write_text(json.dumps(manifest))
        (home.models / f"personal-{version:04d}-Q8_0.gguf").write_bytes(b"model")
    checkpoint.save(home.state, {"a": np.zeros(1, np.float32)}, {"learned": in_training})
    return home, corpus


def test_nothing_holds_removed_text_where_nothing_was_removed(tmp_path):
    home, corpus = make(tmp_path, {1: None, 2: [1, 2]}, [1, 2, 3])
    assert not find_remains(home, corpus)


def test_versions_models_and_checkpoints_that_learned_a_removed_file_are_deleted(tmp_path):
    home, corpus = make(tmp_path, {1: None, 2: [1], 3: [1, 3]}, [1, 3])
    corpus.remove(3)
    remains = find_remains(home, corpus)
    assert (remains.versions, remains.in_training) == ([1, 3], True)  # of 1 nobody knows
    assert str(remains) == "adapters 0001, 0003, personal-0001-Q8_0.gguf, personal-0003-Q8_0.gguf, the state of the training"
    delete_remains(home, remains)
    assert [path.name for path in home.adapters.iterdir()] == ["0002"]
    assert [path.name for path in home.models.iterdir()] == ["personal-0002-Q8_0.gguf"]
    assert checkpoint.load(home.state) is None
    assert not find_remains(home, corpus)


def test_a_file_that_is_added_anew_has_another_number_than_the_removed_one(tmp_path):
    home, corpus = make(tmp_path, {1: [3]}, [1])
    corpus.remove(3)
    corpus.add(documents.read([tmp_path / "c.jsonl"]))
    assert [source["id"] for source in corpus.sources()] == [1, 2, 4]
    assert find_remains(home, corpus).versions == [1]


def test_further_training_has_learned_what_its_start_had_learned(tmp_path):
    _, corpus = make(tmp_path, {}, [])
    corpus.remove(2)
    assert join_learned(corpus, None) == [1, 3]
    assert join_learned(corpus, {"learned": [2]}) == [1, 2, 3]
    assert join_learned(corpus, {}) is None


def test_text_that_only_chose_the_state_was_learned_and_text_that_is_tested_was_not(tmp_path):
    corpus, rng = Corpus(tmp_path / "documents.db", 0.4, 0.3), random.Random(2)
    for number in range(30):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"text": say(rng, 20)}))
        corpus.add(documents.read([tmp_path / f"{number}.jsonl"]))
    splits = {split: {s["id"] for s in corpus.sources() if s[split]} for split in ("training", "validation", "test")}
    assert all(splits.values())
    assert set(join_learned(corpus, None)) == splits["training"] | splits["validation"]


def test_text_that_a_later_version_leaves_out_is_not_called_removed(tmp_path):
    home, corpus = make(tmp_path, {1: None, 2: [1, 2]}, [1, 2, 3])
    with sqlite3.connect(corpus.path) as db:
        db.execute("update source set added = datetime('now', '+1 hour') where id = 3")
    db.close()
    corpus.add(documents.Reading(files={tmp_path / "c.jsonl": []}))
    assert [source["id"] for source in corpus.sources()] == [1, 2]
    assert not find_remains(home, corpus)


def test_a_file_that_the_user_deletes_or_empties_is_called_removed(tmp_path):
    home, corpus = make(tmp_path, {1: [1, 2], 2: [3], 3: [2]}, [])
    (tmp_path / "a.jsonl").unlink()
    corpus.add(documents.read([tmp_path / "b.jsonl"]), [tmp_path])
    assert find_remains(home, corpus).versions == [1]
    time.sleep(1.1)  # when a file was read is known to a second
    (tmp_path / "c.jsonl").write_text("")
    corpus.add(documents.Reading(files={tmp_path / "c.jsonl": []}))
    assert find_remains(home, corpus).versions == [1, 2]


@pytest.mark.parametrize("is_learned", [True, False])
def test_a_missing_number_of_an_older_home_is_a_removed_file_if_learned_text_is_gone(tmp_path, is_learned):
    home, corpus = make(tmp_path, {1: [3]}, [])
    corpus.remove(3)
    with sqlite3.connect(corpus.path) as db:
        db.executescript(VERSION_3 + ("" if is_learned else "delete from gone;"))
    db.close()
    assert find_remains(home, corpus).versions == ([1] if is_learned else [])
