"""Files become documents: plain text, or a chat.

.txt and .md are text; a long file is cut between paragraphs into several documents, so that it can be split. Every line
of a .jsonl file is one document: {"messages": [...]}, {"prompt", "completion"} or {"text"}, detected line by line;
other keys are ignored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from comigs_edge.errors import ComigsError

SUFFIXES = (".txt", ".md", ".jsonl")
SECTION = 4000  # characters, about a thousand tokens: the length at which a text file is cut
ROLES = ("system", "user", "assistant")


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
    def teaches(self) -> bool:
        """Whether there is something to learn: a text, or a chat with an answer."""
        return not self.messages or any(m.role == "assistant" and m.scored and m.content.strip() for m in self.messages)

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


@dataclass
class Reading:
    """The content of the paths that the user named."""

    files: dict[Path, list[Document]] = field(default_factory=dict)
    empty: int = 0  # documents without a word
    skipped: list[tuple[Path, str]] = field(default_factory=list)  # files that are not text, and why
    ignored: int = 0  # files of other kinds inside folders


def read(paths: list[Path]) -> Reading:
    """Reads files and folders (hidden ones left out).

    Raises `ComigsError` for a path that does not exist, a named file of another kind, a JSONL line that is not a
    document, and where no file is. Files that are not UTF-8 are skipped and counted.
    """
    reading = Reading()
    for path in _files(paths, reading):
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            reading.skipped.append((path, f"not UTF-8 text (byte {error.start:,})"))
            continue
        except OSError as error:
            reading.skipped.append((path, error.strerror or str(error)))
            continue
        if "\0" in text:
            reading.skipped.append((path, "binary data"))
            continue
        documents = list(_lines(path, text)) if path.suffix.lower() == ".jsonl" else list(_sections(text))
        kept = [document for document in documents if re.search(r"\w", document.words)]
        reading.empty += len(documents) - len(kept)
        reading.files[path] = kept
    if not reading.files and not reading.skipped:
        raise ComigsError(f"no {', '.join(SUFFIXES)} file in {', '.join(map(str, paths))}; name a folder or a file with text")
    return reading


def _files(paths: list[Path], reading: Reading) -> Iterator[Path]:
    for path in paths:
        path = path.expanduser().absolute()
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
                    if file.suffix.lower() in SUFFIXES:
                        yield file
                    else:
                        reading.ignored += 1
        elif not path.exists():
            raise ComigsError(f"{path} does not exist; name a folder or a {', '.join(SUFFIXES)} file")
        elif path.suffix.lower() not in SUFFIXES:
            raise ComigsError(f"{path.name} cannot be read: only {', '.join(SUFFIXES)}; save it as one of these")
        else:
            yield path


def _sections(text: str) -> Iterator[Document]:
    """Paragraphs joined to at most `SECTION` characters; a longer paragraph is a document by itself."""
    section = ""
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        if section and len(section) + len(paragraph) > SECTION:
            yield Document(text=section)
            section = ""
        section = f"{section}\n\n{paragraph}" if section else paragraph
    yield Document(text=section.strip())


def _lines(path: Path, text: str) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _document(line, f"{path.name}, line {number}")


def _document(line: str, where: str) -> Document:
    try:
        table = json.loads(line)
    except ValueError as error:
        raise ComigsError(f"{where} is not JSON ({error}); nothing was added, mend that line") from None
    if isinstance(table, dict):
        if isinstance(table.get("messages"), list) and table["messages"]:
            return Document(messages=tuple(_message(message, where) for message in table["messages"]))
        if isinstance(table.get("prompt"), str) and isinstance(table.get("completion"), str):
            turns = (Message("user", table["prompt"].strip()), Message("assistant", table["completion"].strip()))
            return Document(messages=turns)
        if isinstance(table.get("text"), str):
            return Document(text=table["text"].strip())
    raise ComigsError(
        f'{where} is no document; nothing was added, each line needs "text", "messages" or "prompt" and "completion"'
    )


def _message(message: Any, where: str) -> Message:
    if isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str):
        return Message(message["role"], message["content"].strip(), message.get("weight") != 0)
    raise ComigsError(f'{where} has a message that is no {{"role": {" | ".join(ROLES)}, "content": text}}; nothing was added')
