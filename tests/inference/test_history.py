"""The chats that a device keeps, in a real SQLite file."""

import multiprocessing
import sqlite3

import pytest

from comigs_edge.data.document import Message
from comigs_edge.errors import ComigsError
from comigs_edge.inference.history import History
from comigs_edge.inference.record import Record


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "home" / "chats.db")


def keep(history, *turns, system=""):
    """A chat of these (question, answer, mark)."""
    chat = None
    for asked, said, mark in turns:
        chat, question = history.ask(chat, system, asked)
        if said is not None:
            number = history.answer(chat, question, said, "base.gguf")
            if mark:
                history.mark(number, mark)
    return chat


def ask_often(path, name, count):
    history = History(path)
    chat = None
    for number in range(count):
        chat, question = history.ask(chat, "", f"{name} asks {number}")
        history.answer(chat, question, f"answer {number}", "base.gguf")


def test_what_was_said_is_kept_in_order_for_its_owner_alone(history):
    keep(history, ("one?", "1", None), ("two?", "2", "good"), system="Be kind.")
    chat = keep(history, ("three?", "3", None))
    assert [(each.role, each.content, each.mark) for each in history.messages(1)] == [
        ("user", "one?", None),
        ("assistant", "1", None),
        ("user", "two?", None),
        ("assistant", "2", "good"),
    ]
    assert history.system(1) == "Be kind."
    assert history.last() == chat == 2
    assert [(each["id"], each["messages"], each["good"], each["first"]) for each in history.chats()] == [
        (1, 4, 1, "one?"),
        (2, 2, 0, "three?"),
    ]
    assert history.path.stat().st_mode & 0o777 == 0o600


def test_a_history_is_read_without_making_a_file(history):
    assert history.chats() == []
    assert history.last() is None
    assert history.setting("keep") is None
    assert not history.path.exists()


def test_a_deleted_chat_leaves_no_word_in_the_file(history):
    keep(history, ("kept?", "yes", None))
    keep(history, ("a canary?", "the canary sings", None))
    history.delete(2)
    assert b"canary" not in history.path.read_bytes()
    assert [each["id"] for each in history.chats()] == [1]
    with pytest.raises(ComigsError, match="there is no chat number 2"):
        history.delete(1, 2)
    assert history.last() == 1  # none was deleted
    assert keep(history, ("new?", "new", None)) == 3  # no number is given twice


def test_two_programs_keep_chats_at_once(history):
    names = ("ada", "bo")
    workers = [multiprocessing.Process(target=ask_often, args=(history.path, name, 20)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    said = [[each.content for each in history.messages(chat["id"]) if each.role == "user"] for chat in history.chats()]
    assert sorted(said) == [[f"{name} asks {number}" for number in range(20)] for name in names]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_bytes(b"no database " * 400), "file is not a database"),
        (lambda path: sqlite3.connect(path).execute("pragma user_version = 99"), "was made by a newer comigs-edge"),
    ],
)
def test_a_damaged_or_newer_file_is_one_sentence_and_nothing_is_kept(history, spoil, sentence):
    keep(history, ("one?", "1", None))
    spoil(history.path)
    said = []
    record = Record(history, said.append, 1)
    for number in range(3):
        record.ask("", f"question {number}")
        record.answer("answer", "base.gguf")
    assert len(said) == 1
    assert sentence in said[0]


def test_a_chat_that_is_deleted_while_it_goes_on_is_said(history):
    said = []
    record = Record(history, said.append)
    record.ask("", "one?")
    record.answer("1", "base.gguf")
    history.delete(record.chat)
    record.ask("", "two?")
    assert said == ["this chat is no longer kept: chat 1 was deleted meanwhile"]
    assert history.chats() == []


def test_a_question_without_an_answer_is_kept_and_not_gone_on_with(history):
    chat = keep(history, ("one?", "1", None), ("killed?", None, None), ("two?", "2", None), ("also?", None, None), system="Hm.")
    assert [each.content for each in history.messages(chat)] == ["one?", "1", "killed?", "two?", "2", "also?"]
    said = Record(history, print, chat).go_on()
    assert [each.content for each in said] == ["Hm.", "one?", "1", "two?", "2"]


def test_two_programs_in_one_chat_keep_each_answer_with_its_question(history):
    ada = Record(history, print)
    ada.ask("", "first?")
    ada.answer("first", "base.gguf")
    bo = Record(history, print, ada.chat)
    ada.ask("", "Ada?")
    bo.ask("", "Bo?")
    ada.answer("Ada", "base.gguf")
    bo.answer("Bo", "base.gguf")
    ada.mark("good")
    said = [each.content for each in Record(history, print, ada.chat).go_on()]
    assert said == ["first?", "first", "Ada?", "Ada", "Bo?", "Bo"]
    assert [each.mark for each in history.messages(1) if each.role == "assistant"] == [None, "good", None]


def test_only_marked_answers_are_learned_and_bad_ones_are_not_there(history):
    keep(history, ("a?", "A", None), ("b?", "B", "bad"), ("c?", "C", "good"), ("d?", "D", None), system="Be kind.")
    keep(history, ("e?", "E", "bad"))
    keep(history, ("f?", "F", "edited"))
    keep(history, ("g?", "G", None))
    assert [document.messages for document in history.documents()] == [
        (
            Message("system", "Be kind."),
            Message("user", "a?"),
            Message("assistant", "A", False),
            Message("user", "c?"),
            Message("assistant", "C"),
        ),
        (Message("user", "f?"), Message("assistant", "F")),
    ]
