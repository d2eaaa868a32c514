"""What documents are compared by: their runs, and what of a chat another chat can have too, its beginning and its question.

The system's messages, which many chats share, are left out of all.
"""

from __future__ import annotations

import hashlib

from comigs_edge.data.document import Document
from comigs_edge.data.runs import runs_of, words

QUESTION = 5  # words from which a question is one of its own: "go on" is asked in many chats
SIZE = 8  # bytes of a hash


def traits(document: Document) -> dict[str, bytes | str | None]:
    """What a document is arranged by, as the columns of its table in the database."""
    return {
        "runs": runs_of(written(document)).tobytes(),
        "beginnings": beginnings(document),
        "question": question(document),
        "left_out": None if document.teaches else "unanswered",
    }


def beginnings(document: Document) -> bytes:
    """Hashes of a chat's first message, of its first two, and so on up to all; empty for a text."""
    hashes, state = [], b""
    for message in document.messages:
        if message.role != "system":
            state = hashlib.sha256(state + f"{message.role}\0{message.content.strip()}".encode("utf-8", "replace")).digest()
            hashes.append(state[:SIZE])
    return b"".join(hashes)


def question(document: Document) -> bytes:
    """Hash of what a chat's user says first, in as many messages as make a question of its own; empty for a text."""
    asked: list[str] = []
    for message in document.messages:
        if message.role == "user" and len(asked) < QUESTION:
            asked += [word for piece in words(message.content) for word in piece]
    return hashlib.sha256(" ".join(asked).encode("utf-8", "replace")).digest()[:SIZE] if asked else b""


def written(document: Document) -> str:
    """The text, or all messages but the system's."""
    if not document.messages:
        return document.text
    return "\n".join(message.content for message in document.messages if message.role != "system")
