"""Conversations of people become chats in which the owner of the device is the assistant."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from comigs_edge.data.document import Document, Message
from comigs_edge.data.sections import SECTION, sections

_HYPHENS = dict.fromkeys(map(ord, "\u2010\u2012\u2013\u2212"), "-")
PERSON, TOOL = "user", "assistant"  # who speaks in a chat tool's export


def name_key(name: str) -> str:
    """What a name is compared by, so that it can be typed: exports write narrow spaces and hyphens that do not break."""
    return " ".join(unicodedata.normalize("NFKC", name).translate(_HYPHENS).casefold().split())


class Turn(NamedTuple):
    """One message of a messenger."""

    author: str
    text: str
    day: str  # whatever the export writes: equal on the same day


@dataclass(frozen=True)
class Conversation:
    """The messages of one export, in their order."""

    turns: list[Turn]
    own: str = ""  # the owner's name, where the export tells it
    is_tool: bool = False  # a person and a chat tool

    @property
    def authors(self) -> list[str]:
        """Who wrote, in the order of appearance."""
        return list(dict.fromkeys(turn.author for turn in self.turns))

    def owners(self, me: frozenset[str]) -> frozenset[str]:
        """The names (as `name_key`) whose messages are learned; of a chat tool its answers, unless `me` says "user"."""
        if self.is_tool:
            return frozenset([PERSON if PERSON in me else TOOL])
        names = me | {name_key(self.own)} if self.own else me
        return names & {name_key(name) for name in self.authors}

    def chats(self, me: frozenset[str]) -> Iterator[Document]:
        """A chat for each day (for each `SECTION` characters of it) in which `owners` are the assistant, all others the user.

        A chat begins with the user and ends with the assistant, as templates want it; days without an answer are left out.
        With more than one other person their names stand before their words. Who speaks alone wrote a text.
        """
        owners = self.owners(me)
        others = [name for name in self.authors if name_key(name) not in owners]
        is_group = len(others) > 1
        if not others:
            yield from (Document(text=text) for text in sections("\n".join(turn.text for turn in self.turns)))
            return
        for _, day in groupby(self.turns, key=lambda turn: turn.day):
            yield from _day_chats(day, owners, is_group)

    def plain(self) -> str:
        """The conversation as a text, for an owner who is none of its authors."""
        return "\n".join(f"{turn.author}: {turn.text}" for turn in self.turns)


def _day_chats(day: Iterator[Turn], owners: frozenset[str], is_group: bool) -> Iterator[Document]:
    messages: list[Message] = []
    length = 0
    for is_own, turns in groupby(day, key=lambda turn: name_key(turn.author) in owners):
        if is_own and not messages:
            continue  # nothing that it answers
        content = "\n".join(f"{turn.author}: {turn.text}" if is_group and not is_own else turn.text for turn in turns)
        messages.append(Message("assistant", content) if is_own else Message("user", content[-SECTION:]))
        length += len(messages[-1].content)
        if is_own and length > SECTION:
            yield Document(messages=tuple(messages))
            messages, length = [], 0
    if len(messages) > 1:
        yield Document(messages=tuple(messages[: len(messages) // 2 * 2]))
