"""The chat's history."""

from itertools import pairwise

import pytest

from comigs_edge import llamacpp
from comigs_edge.data.document import Message
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.errors import ComigsError
from comigs_edge.inference.chat import Chat, until
from comigs_edge.inference.sampling import Sampling
from tests.tiny import write_llama

LIKELIEST = Sampling(temperature=0.0)


@pytest.fixture
def chat(tiny_path):
    return Chat(tiny_path, (), Tokenizer(tiny_path), "Be kind.", 128, 1, LIKELIEST, 8)


def test_the_history_is_in_the_prompt_and_the_system_prompt_stays(chat):
    answer = "".join(chat.answer("hen?"))
    assert chat.messages == [Message("system", "Be kind."), Message("user", "hen?"), Message("assistant", answer.strip())]
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


def test_turns_leave_seldom_so_that_what_was_computed_is_used_again(tiny_path):
    chat = Chat(tiny_path, (), Tokenizer(tiny_path), "Be kind.", 256, 1, LIKELIEST, 4)
    left = [0]
    for _ in range(30):
        "".join(chat.answer("hen?"))
        left.append(chat.left_out)
    assert left[-1] + len(chat.messages) - 1 == 60  # every message but the system's
    turns_that_left = [later - sooner for sooner, later in pairwise(left) if later > sooner]
    assert min(turns_that_left) >= 4  # messages


def test_the_pace_counts_what_was_read_and_drawn(chat):
    said = chat.answer("hen?")
    prompt = len(chat.tokenizer.chat(tuple(chat.messages), for_answer=True).ids)
    assert "".join(said)
    assert (chat.pace.read, chat.pace.tokens <= 8) == (prompt, True)
    "".join(chat.answer("and an inn?"))
    assert 1 < chat.pace.read < len(chat.tokenizer.chat(tuple(chat.messages[:-1]), for_answer=True).ids)


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two "], "one "),
        ("aab aaab", ["aaab"], "aab "),
        ("ends with tw", ["two"], "ends with tw"),
        ("nothing stops", [], "nothing stops"),
        ("at once", ["at"], ""),
    ],
)
def test_a_text_that_stops_is_found_however_the_pieces_are_cut(text, stops, shown, size):
    assert "".join(until((text[i : i + size] for i in range(0, len(text), size)), stops)) == shown


def test_a_message_longer_than_the_context_is_a_sentence(chat):
    "".join(chat.answer("first"))
    wanted = "tokens, and of the context's 128 there are 96 for it and 32 kept for the answer; shorten it"
    with pytest.raises(ComigsError, match=wanted):
        chat.answer("hen " * 200)
    assert [message.content for message in chat.messages[1::2]] == ["first"]  # nothing is forgotten for it
    "".join(chat.answer("hen"))


def test_a_smaller_cache_and_batch_answer_too(tmp_path):
    path = write_llama(tmp_path / "base.gguf", head=32)  # a head of whole blocks
    small = Chat(path, (), Tokenizer(path), "", 128, 1, LIKELIEST, 4, cache="Q8_0", batch=16, mmap=False)
    assert small.llama.n_batch == 16
    assert "".join(small.answer("hen " * 10)).strip() == small.messages[-1].content


def test_the_plans_lines_reach_llama_cpp(ready, run, monkeypatch):
    seen, real = [], llamacpp.load
    monkeypatch.setattr(llamacpp, "load", lambda path, **options: seen.append(options) or real(path, **options))
    run("chat", "--base", "--prompt", "hen", "--plan", "batch=64", "--plan", "threads=1", "--plan", "mmap=false")
    assert {"n_batch": 64, "n_ubatch": 64, "n_threads": 1, "use_mmap": False}.items() <= seen[-1].items()
    result = run("chat", "--base", "--prompt", "hen", "--plan", "cache=Q2_K", code=1)
    assert "cache = 'Q2_K' must be one of F16, Q8_0" in result.output
    assert "chat, in llama.cpp" in run("plan", "--no-measure").stdout


def test_the_same_history_gives_the_same_answer_with_and_without_the_cache(chat, tiny_path):
    "".join(chat.answer("the inn"))
    second = "".join(chat.answer("the hen"))
    other = Chat(tiny_path, (), chat.tokenizer, "Be kind.", 128, 1, LIKELIEST, 8)
    other.messages = chat.messages[:-2]
    assert "".join(other.answer("the hen")) == second
