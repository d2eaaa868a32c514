"""The chat's history."""

import pytest

from comigs_edge.chat import Chat
from comigs_edge.documents import Message
from comigs_edge.errors import ComigsError
from comigs_edge.tokens import Tokenizer


@pytest.fixture
def chat(tiny_path):
    return Chat(tiny_path, (), Tokenizer(tiny_path), "Be kind.", 128, 1, 0.0, 1.0, 8)


def test_the_history_is_in_the_prompt_and_the_system_prompt_stays(chat):
    answer = "".join(chat.answer("hen?"))
    assert chat.messages == [
        Message("system", "Be kind."),
        Message("user", "hen?"),
        Message("assistant", answer.strip()),
    ]
    chat.clear()
    assert chat.messages == [Message("system", "Be kind.")]
    chat.set_system("")
    assert chat.messages == []


def test_an_answer_that_is_stopped_stays_in_the_history(chat):
    pieces = chat.answer("hen?")
    said = next(pieces)
    pieces.close()
    assert chat.messages[-1] == Message("assistant", said.strip())


def test_the_oldest_turns_leave_when_the_context_is_full(chat):
    for number in range(6):
        "".join(chat.answer(f"hen number {number} and an inn"))
    "".join(chat.answer("last"))
    assert len(chat.tokenizer.chat(tuple(chat.messages), for_answer=True).ids) <= 128
    assert chat.messages[0] == Message("system", "Be kind.")
    assert chat.messages[1].role == "user"


def test_a_message_longer_than_the_context_is_a_sentence(chat):
    with pytest.raises(ComigsError, match="the context holds 128"):
        "".join(chat.answer("hen " * 200))
    "".join(chat.answer("hen"))


def test_the_same_history_gives_the_same_answer_with_and_without_the_cache(chat, tiny_path):
    "".join(chat.answer("the inn"))
    second = "".join(chat.answer("the hen"))
    other = Chat(tiny_path, (), chat.tokenizer, "Be kind.", 128, 1, 0.0, 1.0, 8)
    other.messages = chat.messages[:-2]
    assert "".join(other.answer("the hen")) == second
