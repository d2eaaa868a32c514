"""Every chat template that llama.cpp ships, over all kinds of chat: token ids and masks are transformers'."""

import pytest

from comigs_edge.data.document import Message
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.errors import ComigsError
from tests.data.shipped import Reference, shipped_templates


def said(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[role], "content": content.strip()} for role, content in turns]


THOUGHTS = "<think>\nlet me see\n</think>\n\n"
S, HI, HELLO, ON, BYE = ("s", "Be brief."), ("u", "Hi there."), ("a", "Hello."), ("u", "And now?"), ("a", "Bye.")
# Kind of chat -> messages, and whether an answer is asked for.
CHATS = {
    "question": (said(HI), True),
    "system and question": (said(S, HI), True),
    "answer": (said(HI, HELLO), False),
    "system and answer": (said(S, HI, HELLO), False),
    "two turns with system": (said(S, HI, HELLO, ON, BYE), False),
    "two turns": (said(HI, HELLO, ON, BYE), False),
    "second question": (said(HI, HELLO, ON), True),
    "unicode": (said(("u", "Grüße 你好 🙂 \u2028 e\u0301"), ("a", "Привет ﷽ 🏳️‍🌈")), False),
    "thoughts before": (said(HI, ("a", f"{THOUGHTS}Hello."), ON), True),
    "thoughts in the answer": (said(HI, ("a", f"{THOUGHTS}Hello.")), False),
    "assistant first": (said(HELLO, HI), True),
    "two questions": (said(("u", "One."), ("u", "Two."), ("a", "Three.")), False),
    "two answers": (said(("u", "One."), ("a", "Two."), ("a", "Three.")), False),
    "late system": (said(("u", "One."), ("a", "Two."), ("s", "Be rude."), ("u", "Three.")), True),
    "system alone": (said(S), True),
    "white space around": (said(("s", "  spaced  \n\n"), ("u", "\nHi\n")), True),
    "empty answer": (said(("u", "Hi"), ("a", "")), False),
    "answer again": (said(("u", "Hi"), HELLO), True),
}


@pytest.fixture(scope="module")
def templates():
    return shipped_templates()


def without_thoughts(chat):
    return [message | {"content": message["content"].replace(THOUGHTS, "")} for message in chat]


def merged(chat):
    """The system prompt before the first message, as llama.cpp puts it for a template that refuses the role."""
    return [chat[1] | {"content": f"{chat[0]['content']}\n{chat[1]['content']}"}, *chat[2:]]


def expected(reference, chat, for_answer, thinking):
    """Text, or None where transformers refuses the chat."""
    text = reference.text(chat, for_answer, thinking)
    if text is None and chat[0]["role"] == "system" and len(chat) > 1:
        chat = merged(chat)
        text = reference.text(chat, for_answer, thinking)
    if text and not thinking and not for_answer and chat[-2]["role"] == "user" and chat[-1]["content"]:
        prompt, answer = reference.text(chat[:-1], True), chat[-1]["content"]
        if not text.startswith(prompt):  # an answer begins where it would be asked for
            text = prompt + text[text.rindex(answer) :]
    return text


def differences(name, template, path, thinking=False):
    reference = Reference(template, path)
    tokenizer = Tokenizer(path, thinking)
    for kind, (chat, for_answer) in CHATS.items():
        chat = without_thoughts(chat)
        text = expected(reference, chat, for_answer, thinking)
        try:
            found = tokenizer.chat(tuple(Message(**message) for message in CHATS[kind][0]), for_answer)
        except ComigsError as error:
            if text is not None:
                yield f"{name}, {kind}: {error}"
            continue
        if text is None:
            yield f"{name}, {kind}: transformers refuses it"
        elif found.ids != reference.ids(text):
            yield f"{name}, {kind}: other ids"
        elif not for_answer and found.scored != reference.scored(text, chat):
            yield f"{name}, {kind}: other mask"


def test_ids_and_masks_of_every_shipped_template_are_those_of_transformers(templates, tmp_path):
    assert len(templates) >= 60
    found = [line for name in templates for line in differences(name, templates[name], tmp_path / "vocabulary.gguf")]
    assert found == []


def test_where_a_base_is_to_think_ids_and_masks_are_those_of_transformers_that_thinks(templates, tmp_path):
    path = tmp_path / "vocabulary.gguf"
    thinking = {name: source for name, source in templates.items() if "enable_thinking" in source}
    assert len(thinking) >= 5
    found = [line for name, source in thinking.items() for line in differences(name, source, path, thinking=True)]
    assert found == []
    Reference(thinking["Qwen-Qwen3-0.6B"], path)
    question = (Message("user", "Hi there."),)
    asked = {way: Tokenizer(path, way).chat(question, True).ids for way in (True, False)}
    assert len(asked[True]) < len(asked[False])  # which holds the thoughts that are not to come
    answered = Tokenizer(path, True).chat((*question, Message("assistant", f"{THOUGHTS}Hello.")), False)
    assert answered.ids[: len(asked[True])] == asked[True]
    assert answered == Tokenizer(path, True).chat((*question, Message("assistant", "Hello.")), False)


def test_nothing_is_scored_that_a_template_does_not_mark_as_the_assistants(templates, tmp_path):
    marked = {name: source for name, source in templates.items() if "generation -%}" in source and "endgeneration" in source}
    assert marked
    for source in marked.values():
        reference = Reference(source, tmp_path / "vocabulary.gguf")
        found = Tokenizer(tmp_path / "vocabulary.gguf").chat(
            (Message("user", "Hi there."), Message("assistant", "Hello.")), False
        )
        theirs = reference.tokenizer.apply_chat_template(
            said(HI, HELLO), enable_thinking=False, return_dict=True, return_assistant_tokens_mask=True
        )
        assert found.ids == theirs["input_ids"]
        assert all(theirs["assistant_masks"][i] for i, scored in enumerate(found.scored) if scored)


def test_thinking_templates_leave_earlier_thoughts_out_as_transformers_does(templates, tmp_path):
    chat, _ = CHATS["thoughts before"]
    for name in ("Qwen-Qwen3-0.6B", "Qwen3.5-4B", "GLM-4.6", "Qwen-QwQ-32B"):
        reference = Reference(templates[name], tmp_path / "vocabulary.gguf")
        found = Tokenizer(tmp_path / "vocabulary.gguf").chat(tuple(Message(**message) for message in chat), True)
        assert found.ids == reference.ids(reference.text(chat, True))


def test_a_thinking_bases_answer_begins_alike_in_training_and_in_chat(templates, tmp_path):
    question = (Message("user", "Hi there."),)
    for name in ("Qwen-Qwen3-0.6B", "openbmb-MiniCPM5-1B", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"):
        Reference(templates[name], tmp_path / "vocabulary.gguf")
        tokenizer = Tokenizer(tmp_path / "vocabulary.gguf")
        asked = tokenizer.chat(question, for_answer=True).ids
        trained = tokenizer.chat((*question, Message("assistant", "Hello.")), for_answer=False)
        assert trained.ids[: len(asked)] == asked
        assert trained.scored.index(True) == len(asked)
