"""One person's messages from the PyPI package `chitchat-dataset` (MIT), as a JSONL file of chats.

    python -m benchmarks.text.chitchat OUTPUT.jsonl [RANK]

RANK chooses the person: 0 has written the most. The person is the assistant of each chat; e-mail addresses and long
numbers are masked. The package's own module is not imported, only its data file is read.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

MASKS = ((re.compile(r"\S+@\S+\.\S+"), "[mail]"), (re.compile(r"\+?\d[\d\s().-]{6,}\d"), "[number]"))


def conversations() -> list[dict[str, Any]]:
    """The conversations of the package; each has `messages`, a list of turns, a turn being a list of messages."""
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or spec.origin is None:
        raise SystemExit("the package chitchat-dataset is not installed: pip install --no-deps chitchat-dataset")
    return list(json.loads((Path(spec.origin).parent / "dataset.json").read_text()).values())


def conversations_without(ranks: Collection[int]) -> list[dict[str, Any]]:
    """Those in which nobody of these ranks writes."""
    found = conversations()
    people = _people(found)
    others = {people[each] for each in ranks}
    return [each for each in found if not writers(each) & others]


def chats_of(rank: int, without: Collection[int] = ()) -> list[list[dict[str, str]]]:
    """The chats of the person with that rank, with roles `user` and `assistant`, but for those with people of ranks `without`."""
    person = _people(conversations())[rank]
    chats = (_chat(each["messages"], person) for each in conversations_without(without))
    return [chat for chat in chats if chat]


def chats_apart(ranks: list[int]) -> list[list[list[dict[str, str]]]]:
    """The chats of each of these people; one between two of them is given to the one who has written less, and to nobody else."""
    found = conversations()
    people = _people(found)
    chats: dict[str, list[list[dict[str, str]]]] = {people[rank]: [] for rank in ranks}
    for conversation in found:
        owner = next((person for person in reversed(chats) if person in writers(conversation)), None)
        if owner is not None and (chat := _chat(conversation["messages"], owner)):
            chats[owner].append(chat)
    return list(chats.values())


def writers(conversation: dict[str, Any]) -> set[str]:
    """Who writes in it."""
    return {message["sender"] for turn in conversation["messages"] for message in turn}


def _people(found: list[dict[str, Any]]) -> list[str]:
    """Who writes, those who have written most first."""
    written: Counter[str] = Counter()
    for conversation in found:
        for turn in conversation["messages"]:
            written.update({message["sender"]: len(message["text"]) for message in turn})
    return [person for person, _ in written.most_common()]


def _chat(turns: list[list[dict[str, str]]], person: str) -> list[dict[str, str]]:
    messages = []
    for turn in turns:
        text = "\n".join(message["text"].strip() for message in turn).strip()
        if text:
            role = "assistant" if turn[0]["sender"] == person else "user"
            messages.append({"role": role, "content": masked(text)})
    return messages if any(message["role"] == "assistant" for message in messages) else []


def masked(text: str) -> str:
    """The text without mail addresses and long numbers."""
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return text


def write(path: Path, rank: int, limit: int = 150) -> None:
    """Writes at most `limit` chats of the person, one a line."""
    lines = [json.dumps({"messages": chat}, ensure_ascii=False) for chat in chats_of(rank)[:limit]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2)
