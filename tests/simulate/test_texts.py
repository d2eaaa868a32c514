"""Text of virtual devices: split without a leak, cut to the size, mixed where the recipe says so."""

import json
from dataclasses import replace

import pytest

from comigs_edge.data.tokenizer import Encoded
from comigs_edge.errors import ComigsError
from comigs_edge.simulate.texts import find, limit


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
