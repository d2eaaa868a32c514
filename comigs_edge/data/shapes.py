"""Values of JSON become documents, in the shapes that people have: what is unambiguous is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from comigs_edge.data.document import Document, Message, Odd

WANTED = '{"text": ...}, {"messages": [{"role": ..., "content": ...}]} or {"prompt": ..., "completion": ...}'
CHATS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat")
PAIRS = (  # of a question and its answer, the more exact names first
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "chosen"), ("prompt", "answer"), ("prompt", "output"),
    ("instruction", "output"), ("instruction", "response"), ("question", "answer"), ("question", "response"),
    ("query", "response"), ("query", "answer"), ("user", "assistant"), ("human", "assistant"), ("input", "output"),
)  # fmt: skip
TEXTS = ("text", "content")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "ai", "claude"), "assistant"),
    # tools' turns are nobody's words
    **dict.fromkeys(("tool", "function", "function_call", "tool_call", "function_response", "tool_response"), ""),
    **dict.fromkeys(("observation", "ipython", "tool_calls", "tool_result"), ""),
}
_NAMES_SHOWN = 6


def is_known(names: Iterable[str]) -> bool:
    """Whether a table with these keys is a text, or a question and its answer."""
    keys = {name.lower() for name in names}
    return not keys.isdisjoint(TEXTS) or any(keys.issuperset(pair) for pair in PAIRS)


def documents(value: Any, line: int) -> Iterator[Document | Odd]:
    """The documents in one value; `Odd` says the keys that it has where they are no known shape."""
    if isinstance(value, str):
        yield Document(text=value)
    elif isinstance(value, list):
        if _is_chat(value):
            yield from _chat(value, line)
        else:
            for each in value:
                yield from documents(each, line) if isinstance(each, dict | str) or _is_chat(each) else [_no_shape(each, line)]
    elif isinstance(value, dict):
        yield from _of_table({str(key).lower(): each for key, each in value.items()}, line)
    else:
        yield _no_shape(value, line)


def _of_table(table: dict[str, Any], line: int) -> Iterator[Document | Odd]:
    is_answer = any(isinstance(table.get(name), list) for name in CHATS) or any(table.keys() >= set(pair) for pair in PAIRS)
    if is_answer and str(table.get("label")).lower() == "false":  # as KTO has them
        yield Odd("an answer marked as bad", line)
        return
    for name in CHATS:
        if isinstance(chat := table.get(name), list):
            several = chat if chat and all(isinstance(each, list) for each in chat) else [chat]
            for each in several:
                yield from _chat(each, line, table)
            return
    if isinstance(qas := table.get("qas"), list):  # of a paragraph of SQuAD
        for each in qas:
            yield from documents({"context": table.get("context"), **each} if isinstance(each, dict) else each, line)
        return
    if "question" in table and "answers" in table and "answer" not in table:
        table = table | {"answer": _first_answer(table["answers"])}
        if table["answer"] is None:
            yield Odd("a question without an answer", line)
            return
    for question, answer in PAIRS:
        if question in table and answer in table:
            yield from _pair(table, table[question], table[answer], line)
            return
    if isinstance(table.get("chosen"), list):  # of a preference, with the prompt inside
        yield from _chat(table["chosen"], line, table)
        return
    text = next((table[name] for name in TEXTS if isinstance(table.get(name), str)), None)
    if text is not None:
        yield Document(text=text)
        return
    rows = [each for each in table.values() if isinstance(each, list) and each and isinstance(each[0], dict)]
    yield from documents(rows[0], line) if len(rows) == 1 else [_no_shape(table, line)]  # {"data": [...]}


def _first_answer(answers: Any) -> str | None:
    """Of several, each a text or a table with one, or a table with a list of them; None where there is none."""
    while isinstance(answers, dict | list) and answers:
        answers = answers[0] if isinstance(answers, list) else answers.get("text")
    return answers if isinstance(answers, str) and answers.strip() else None


def _no_shape(value: Any, line: int) -> Odd:
    if isinstance(value, dict):
        names = ", ".join(str(name)[:30] for name in list(value)[:_NAMES_SHOWN]) + (", ..." if len(value) > _NAMES_SHOWN else "")
        empty = [name for name in TEXTS if name in value]
        return Odd(f'"{empty[0]}" is no text' if empty else f"no known shape with the keys {names or '(none)'}", line)
    return Odd(f"no document but a {_KINDS.get(type(value), 'list')}", line)


_KINDS = {int: "number", float: "number", bool: "truth value", type(None): "null"}


def _pair(table: dict[str, Any], question: Any, answer: Any, line: int) -> Iterator[Document | Odd]:
    """A question and its answer, each a text or (as TRL has them) a list of messages; Alpaca's input and history go with it."""
    turns: list[Any] = []
    for each in table.get("history") or () if isinstance(table.get("history"), list) else ():
        if isinstance(each, list) and len(each) == 2:
            turns += [{"role": "user", "content": each[0]}, {"role": "assistant", "content": each[1]}]
    for content, role in ((question, "user"), (answer, "assistant")):
        if isinstance(content, list) and _is_chat(content):
            turns += content
        else:
            turns.append({"role": role, "content": content})
    extra = _text(table.get("input" if "instruction" in table else "context")) if not isinstance(question, list) else ""
    if extra:
        turns[-2] = {"role": "user", "content": f"{_text(question) or ''}\n\n{extra}"}
    yield from _chat(turns, line, table)


def is_chat(value: Any) -> bool:
    """Whether this is a list of messages, or holds one, in which known roles speak."""
    if isinstance(value, dict):
        value = next((value[name] for name in CHATS if name in value), None)
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and _is_known(_role(each)) for each in value)


def _is_chat(value: Any) -> bool:
    """Whether this is a list of messages that say who speaks."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and _role(each) is not None for each in value)


def _is_known(who: str | None) -> bool:
    return who is not None and who.lower() in ROLES


def _role(message: dict[str, Any]) -> str | None:
    """Who speaks, as the message has it; None if it does not say so."""
    for name in ("role", "from", "sender", "author"):
        who = message.get(name)
        if isinstance(who, dict):
            who = who.get("role")
        if isinstance(who, str) and ("content" in message or "value" in message or "text" in message or "parts" in message):
            return who
    return None


def _chat(messages: list[Any], line: int, table: dict[str, Any] | None = None) -> Iterator[Document | Odd]:
    """The chat, unless one of its messages is odd; what is nobody's words is left out of it, and counted."""
    found: list[Message] = []
    left: list[Odd] = []
    system = _text((table or {}).get("system") or (table or {}).get("system_prompt"))
    if system:
        found.append(Message("system", system))
    for message in messages:
        who = _role(message) if isinstance(message, dict) else None
        role = None if who is None else ROLES.get(who.lower())
        if role is None:
            yield Odd("a message without role and content" if who is None else f'the role "{who[:30]}" is unknown', line)
            return
        content = next((message[name] for name in ("content", "value", "text", "parts") if name in message), None)
        words = _text(content)
        if words is None:
            yield Odd("a message whose content is no text", line)
            return
        if not role or (not words and _has_calls(message)):
            left.append(Odd("a message of a tool, or a call of one", line))
            continue
        left += [Odd("a part of a message that is no text", line)] * _other_parts(content)
        found.append(Message(role, words, message.get("weight") != 0))
    if not any(message.content for message in found):
        left.append(Odd("a chat without a message", line))
    else:
        yield Document(messages=tuple(found))
    yield from left


def _other_parts(content: Any) -> int:
    """Pictures and the like."""
    parts = content if isinstance(content, list) else []
    return sum(isinstance(part, dict) and not isinstance(part.get("text"), str) for part in parts)


def _has_calls(message: dict[str, Any]) -> bool:
    return bool(message.get("tool_calls") or message.get("function_call"))


def _text(content: Any) -> str | None:
    """A message's words: a text, its parts that are texts joined, nothing for null; None where it is something else."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, list) and all(isinstance(part, str | dict) for part in content):
        parts = [part if isinstance(part, str) else part.get("text") for part in content]
        return "\n".join(part for part in parts if isinstance(part, str)).strip()
    return None
