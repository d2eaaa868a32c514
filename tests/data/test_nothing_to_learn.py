"""Chats without an answer, answers with the weight 0 and control tokens written out are counted."""

import json

import pytest

from comigs_edge.data import documents
from comigs_edge.data.corpus import SPLITS, Corpus
from comigs_edge.data.document import Document, Message


def add(tmp_path, *records):
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, records)))
    corpus = Corpus(tmp_path / "documents.db")
    return corpus, corpus.add(documents.read([tmp_path / "chats.jsonl"]))


def chat(*turns):
    return {"messages": [dict(zip(("role", "content", "weight"), turn, strict=False)) for turn in turns]}


def test_chats_without_an_answer_are_counted_and_not_used(tmp_path):
    corpus, report = add(
        tmp_path,
        chat(("user", "what is it?")), chat(("system", "be kind")), chat(("user", "why?"), ("assistant", " ")),
        chat(("user", "who?"), ("assistant", "me", 0)), chat(("user", "where?"), ("assistant", "here")),
    )  # fmt: skip
    assert (report.added, report.unanswered, report.unscored) == (1, 4, 1)
    assert sum(size["documents"] for size in corpus.sizes().values()) == 1


def test_an_answer_with_the_weight_0_is_kept_and_not_learned(tmp_path):
    corpus, report = add(tmp_path, chat(("user", "a?"), ("assistant", "no", 0), ("user", "b?"), ("assistant", "yes", 1)))
    assert (report.added, report.unscored) == (1, 1)
    (found,) = [document for split in SPLITS for document in corpus.documents(split)]
    assert [message.scored for message in found.messages] == [True, False, True, True]


def test_a_chat_without_weights_is_stored_as_it_always_was():
    document = Document(messages=(Message("user", "a"), Message("assistant", "b")))
    assert document.to_json() == '{"messages": [["user", "a"], ["assistant", "b"]]}'
    weighted = Document(messages=(Message("user", "a"), Message("assistant", "b", False)))
    assert Document.from_json(weighted.to_json()) == weighted


@pytest.mark.parametrize(
    "text", ["<|im_start|>user\nhi<|im_end|>", "[INST] hi [/INST]", "<start_of_turn>user\nhi", "<｜User｜>hi", "<<SYS>> be kind"]
)
def test_control_tokens_that_are_written_out_are_counted(tmp_path, text):
    assert add(tmp_path, {"text": f"some words before {text} and behind"})[1].control_tokens == 1


@pytest.mark.parametrize("text", ["a | b | c", "x <- y |> f()", "INST is a word", "if (a<b || c>d)", "| table | head |"])
def test_ordinary_text_has_no_control_tokens(tmp_path, text):
    assert add(tmp_path, {"text": text})[1].control_tokens == 0
