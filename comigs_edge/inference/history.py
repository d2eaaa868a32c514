"""The chats that a device keeps: one SQLite file. Every message is on the disk before the next thing happens.

A question is kept when it is asked and an answer when it has ended, so that a kill loses at most the answer being written.
"""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from comigs_edge.data.document import Document, Message
from comigs_edge.database import fetch, open_database
from comigs_edge.errors import ComigsError

Mark = Literal["good", "bad", "edited"]
Setting = Literal["keep", "learn"]  # whether conversations are kept; whether marked answers may become training text
NO_CHAT = "there is no chat number {}; see: comigs-edge chats list"
# Of an answer: `question` is the number of its question, `mark` the owner's, `model` the file that gave it. Times are UTC.
_TABLES = """
create table chat (
    id integer primary key autoincrement, started text not null default current_timestamp, system text not null
);
create table message (
    id integer primary key autoincrement, chat integer not null references chat (id),
    at text not null default current_timestamp, role text not null, content text not null,
    question integer, mark text, model text
);
create index message_chat on message (chat);
create table setting (name text primary key, value text not null);
"""
SCRIPTS = (_TABLES,)


class Kept(NamedTuple):
    """A message of a kept chat."""

    id: int
    at: str  # UTC
    role: str
    content: str
    question: int | None  # of an answer, the number of what it answers
    mark: Mark | None
    model: str | None


class History:
    """The chats in the SQLite file at `path`, which is made when the first one is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, chat: int | None, system: str, text: str) -> tuple[int, int]:
        """Keeps a question; None: the first of a new chat. Returns the numbers of the chat and of the question."""
        with self._open() as db:
            if chat is None:
                chat = int(db.execute("insert into chat (system) values (?)", (system,)).lastrowid or 0)
            return chat, self._insert(db, chat, {"role": "user", "content": text})

    def answer(self, chat: int, question: int, text: str, model: str) -> int:
        """Keeps the answer to a question; returns its number, by which it is marked."""
        message: dict[str, str | int] = {"role": "assistant", "content": text, "question": question, "model": model}
        with self._open() as db:
            return self._insert(db, chat, message)

    def mark(self, message: int, mark: Mark, content: str | None = None) -> None:
        """Marks an answer, in other words where `content` says them."""
        with self._open() as db:
            query = "update message set mark = ?, content = coalesce(?, content) where id = ?"
            if not db.execute(query, (mark, content, message)).rowcount:
                raise ComigsError("the answer was deleted meanwhile, with its chat")

    def chats(self) -> list[dict[str, Any]]:
        """Each chat: id, started, changed (UTC), number of messages, how many are good, edited and bad, its first words."""
        marks = ", ".join(f"coalesce(sum(mark = '{mark}'), 0) as {mark}" for mark in ("good", "edited", "bad"))
        return self._rows(
            f"select chat.id, started, max(at) as changed, count(*) as messages, {marks}, "
            "(select content from message where chat = chat.id order by message.id limit 1) as first "
            "from chat join message on chat = chat.id group by chat.id order by chat.id"
        )

    def last(self) -> int | None:
        """The chat in which something was said last."""
        rows = self._rows("select chat from message order by id desc limit 1")
        return int(rows[0]["chat"]) if rows else None

    def system(self, chat: int) -> str:
        """The system prompt of a chat; raises `ComigsError` if there is no such chat."""
        rows = self._rows("select system from chat where id = ?", chat)
        if not rows:
            raise ComigsError(NO_CHAT.format(chat))
        return str(rows[0]["system"])

    def messages(self, chat: int) -> list[Kept]:
        """All that was said in a chat, in order."""
        query = "select id, at, role, content, question, mark, model from message where chat = ? order by id"
        return [Kept(**row) for row in self._rows(query, chat)]

    def delete(self, *chats: int) -> None:
        """Deletes chats, or none if one of the numbers is unknown."""
        with self._open() as db:
            for chat in chats:
                db.execute("delete from message where chat = ?", (chat,))
                if not db.execute("delete from chat where id = ?", (chat,)).rowcount:
                    raise ComigsError(NO_CHAT.format(chat))

    def setting(self, name: Setting) -> bool | None:
        """What the owner said; None before that."""
        rows = self._rows("select value from setting where name = ?", name)
        return rows[0]["value"] == "on" if rows else None

    def set(self, name: Setting, value: bool) -> None:
        """Remembers what the owner says."""
        with self._open() as db:
            db.execute("insert or replace into setting values (?, ?)", (name, "on" if value else "off"))

    def documents(self) -> list[Document]:
        """The chats with good or edited answers, which alone are to be learned; bad answers and their questions are left out."""
        found = []
        for chat in self.chats():
            if chat["good"] or chat["edited"]:
                system = self.system(chat["id"]).strip()
                found.append(Document(messages=(*_system(system), *_learnable(self.messages(chat["id"])))))
        return found

    def _insert(self, db: sqlite3.Connection, chat: int, message: dict[str, str | int]) -> int:
        columns, places = ", ".join(message), ", ".join("?" * len(message))
        query = f"insert into message (chat, {columns}) select id, {places} from chat where id = ?"
        inserted = db.execute(query, (*message.values(), chat))
        if not inserted.rowcount:
            raise ComigsError(f"chat {chat} was deleted meanwhile")
        return int(inserted.lastrowid or 0)

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        return open_database(self.path, SCRIPTS)

    def _rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self._open() as db:
            return fetch(db, sql, *values)


def turns(messages: list[Kept]) -> list[tuple[Kept, Kept]]:
    """The questions that were answered, each with its answer; two programs may have asked in turn."""
    asked = {each.id: each for each in messages}
    return [(asked[each.question], each) for each in messages if each.question in asked]


def _system(text: str) -> tuple[Message, ...]:
    return (Message("system", text),) if text else ()


def _learnable(messages: list[Kept]) -> list[Message]:
    """The turns up to the last answer that is to be learned, without bad ones."""
    found, end = [], 0
    for asked, said in turns(messages):
        if said.mark != "bad" and said.content.strip():
            wanted = said.mark is not None
            found += [Message("user", asked.content), Message("assistant", said.content, wanted)]
            end = len(found) if wanted else end
    return found[:end]
