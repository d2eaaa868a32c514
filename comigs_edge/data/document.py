"""What a device learns from: a text, or a chat."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str
    scored: bool = True  # False: of the assistant, but not to be learned


@dataclass(frozen=True)
class Document:
    """A text (`text` is set) or a chat (`messages` are); the assistant of a chat is the owner of the device."""

    text: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def kind(self) -> str:
        """`text` or `chat`."""
        return "chat" if self.messages else "text"

    @property
    def words(self) -> str:
        """All that was written, without roles."""
        return "\n".join(message.content for message in self.messages) if self.messages else self.text

    @property
    def scored_words(self) -> list[str]:
        """What counts in the loss: the text, or the answers that are to be learned."""
        return [m.content for m in self.messages if m.role == "assistant" and m.scored] if self.messages else [self.text]

    @property
    def teaches(self) -> bool:
        """Whether there is something to learn: a text, or a chat with an answer."""
        return not self.messages or any(words.strip() for words in self.scored_words)

    def to_json(self) -> str:
        """The content in one canonical form, which is also what is stored."""
        messages = [message[:2] if message.scored else message for message in self.messages]
        content: Any = {"messages": messages} if messages else {"text": self.text}
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, content: str) -> Document:
        """The reverse of `to_json`."""
        table = json.loads(content)
        if "messages" in table:
            return cls(messages=tuple(Message(*message) for message in table["messages"]))
        return cls(text=table["text"])

    @property
    def sha256(self) -> str:
        """Hash of the content; equal texts are equal documents wherever they come from."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class Odd(NamedTuple):
    """A part of a file that is left out: why, and on which line it begins (0: no line of its own)."""

    reason: str
    line: int = 0


class Unreadable(Exception):
    """A whole file is left out; the text is the reason."""
