"""Text of virtual devices: split without a leak, cut to the size, mixed where the recipe says so."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.common import text_file
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.errors import ComigsError
from comigs_edge.inference.evaluate import prepare
from comigs_edge.progress import SILENT
from comigs_edge.simulate import texts
from comigs_edge.simulate.texts import digest, find, limit
from tests.data.test_leaks import say


def tokens(encoded):
    return sum(len(each.ids) for each in encoded)


def test_every_split_has_as_many_tokens_as_the_size_says(recipe, read_texts):
    found = read_texts(recipe)
    assert [text.num_training_tokens for text in found.values()] == [2000, 2000, 1000]  # c has a share of a half
    assert {tokens(text.validation) for text in found.values()} == {600}
    assert all(0 < text.test.num_tokens <= 300 for text in found.values())


def test_no_document_is_in_two_splits(recipe, read_texts):
    for text in read_texts(recipe).values():
        starts = [{tuple(each.ids[:20]) for each in part} for part in (text.training, text.validation)]
        starts.append({tuple(window.ids[:20]) for window in text.test.windows})
        assert not starts[0] & starts[1]
        assert not starts[0] & starts[2]
        assert not starts[1] & starts[2]


def test_a_mixed_target_has_equal_parts_of_every_device(recipe, read_texts):
    own, mixed = read_texts(recipe), read_texts(replace(recipe, target="mix"))
    for name in own:
        assert mixed[name].training == own[name].training
        assert mixed[name].validation == [each for source in own.values() for each in limit(source.validation, 600 // 3)]
    assert mixed["a"].test == mixed["b"].test


def test_the_last_document_is_cut():
    documents = [Encoded([1, 2, 3], [True] * 3), Encoded([4, 5, 6], [True] * 3), Encoded([7], [True])]
    assert limit(documents, 5) == [documents[0], Encoded([4, 5], [True] * 2)]
    assert limit(documents, 100) == documents


def test_a_file_that_is_missing_or_there_twice_is_a_sentence(folder, tmp_path):
    assert find(folder, "a").name == "a.jsonl"
    with pytest.raises(ComigsError, match=r"has no file z.jsonl where one is needed"):
        find(folder, "z")
    for part in ("x", "y"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.jsonl").write_text(json.dumps({"text": "a"}))
    with pytest.raises(ComigsError, match=r"has 2 files a.jsonl where one is needed"):
        find(tmp_path, "a")


def test_a_digest_is_of_everything_that_is_trained_on_and_measured(recipe, read_texts):
    found = read_texts(recipe)
    one = found["a"]
    others = [
        replace(one, training=one.training[1:]), replace(one, validation=one.validation[1:]),
        replace(one, test=replace(one.test, windows=one.test.windows[1:])),
    ]  # fmt: skip
    digests = {digest(found), *(digest(found | {"a": other}) for other in others), digest(found | {"d": one})}
    assert len(digests) == 5
    assert digest(found) == digest(dict(found))


def parts(text):
    return text.training, text.validation, text.test.windows


def test_judging_text_is_split_otherwise_and_in_the_same_shares(recipe, read_texts, folder, tokenizer):
    tuning, judging = read_texts(recipe), texts.read(recipe, recipe.size("quick"), folder, tokenizer, SILENT, judge=True)
    assert digest(judging) != digest(tuning)
    for name in recipe.devices:
        assert not set(map(repr, judging[name].test.windows)) <= set(map(repr, tuning[name].test.windows))
        assert [tokens(part) for part in parts(judging[name])[:2]] == [tokens(part) for part in parts(tuning[name])[:2]]


def test_judging_text_is_never_read_by_accident(recipe, folder, tokenizer, tmp_path, monkeypatch):
    size = recipe.size("quick")
    with pytest.raises(ComigsError, match=r'the text of "Three devices" is kept for judging; .* then add --judge'):
        texts.read(replace(recipe, judging=True), size, folder, tokenizer, SILENT)
    shutil.copytree(folder / "below", tmp_path / "text" / "judging" / "below")
    (tmp_path / "link").symlink_to(tmp_path / "text" / "judging" / "below")
    (tmp_path / "text" / "judging" / "linked.jsonl").symlink_to(folder / "below" / "a.jsonl")
    with pytest.raises(ComigsError, match=r"linked.jsonl is kept for judging"):
        find(tmp_path / "text", "linked")
    monkeypatch.chdir(tmp_path / "text" / "judging" / "below")
    for start in (tmp_path / "text", tmp_path / "text" / "judging", Path("."), tmp_path / "link"):
        for judge in (False, True):  # split otherwise, text of other recipes is still not that of judging
            with pytest.raises(ComigsError, match=r"a.jsonl is kept for judging, .* name a folder of other text"):
                texts.read(recipe, size, start, tokenizer, SILENT, judge=judge)
        with pytest.raises(SystemExit, match=r"a.jsonl is kept for judging"):
            text_file(start, "a")
        assert find(start, "a", judging=True).resolve() == text_file(start, "a", judging=True).resolve()


def test_a_recipe_for_judging_reads_a_folder_of_that_name_alone(recipe, folder, tokenizer, tmp_path):
    size, judged = recipe.size("quick"), replace(recipe, judging=True)
    with pytest.raises(ComigsError, match=r"below/a.jsonl is not in a folder judging, .* move it into one"):
        texts.read(judged, size, folder, tokenizer, SILENT, judge=True)
    with pytest.raises(SystemExit, match=r"below/a.jsonl is not in a folder judging"):
        text_file(folder, "a", judging=True)
    for place in ("judging", "other"):  # of the same name in both, each recipe finds its own
        shutil.copytree(folder / "below", tmp_path / place)
    assert texts.read(judged, size, tmp_path, tokenizer, SILENT, judge=True).keys() == recipe.devices.keys()
    assert [find(tmp_path, "a", judging).parent.name for judging in (True, False)] == ["judging", "other"]


def test_every_window_is_of_a_document(tokenizer):
    documents = [Encoded(list(range(1, 21)), [True] * 20), Encoded([1], [True]), Encoded(list(range(1, 11)), [True] * 10)]
    test = prepare(documents, tokenizer, 8, 1000)
    assert test.documents == (0, 0, 0, 2, 2)
    assert [len(window.ids) for window in test.windows] == [9, 9, 4, 9, 2]


def test_the_splits_of_a_simulation_are_three_fifths_and_two_of_one_fifth(tokenizer, tmp_path):
    rng = random.Random(5)
    lines = [json.dumps({"text": say(rng, 30)}) for _ in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    counts = {split: len(encoded) for split, encoded in texts._splits(tmp_path / "a.jsonl", tokenizer).items()}
    total = sum(counts.values())
    assert total == 300
    assert counts["training"] / total == pytest.approx(0.6, abs=0.1)
    assert counts["validation"] / total == pytest.approx(0.2, abs=0.08)
