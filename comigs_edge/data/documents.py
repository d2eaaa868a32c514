"""Files become documents: notes, tables of questions and answers, exports of messengers and chat tools, pages and books."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from comigs_edge.data import notes, shapes, talks
from comigs_edge.data.archives import holds_export, read_exports
from comigs_edge.data.conversation import Conversation, name_key
from comigs_edge.data.decode import INSTALL, decode, unpack
from comigs_edge.data.document import Document, Odd, Unreadable
from comigs_edge.data.importing import SUFFIXES as IMPORTED
from comigs_edge.data.importing import Importer, is_missing
from comigs_edge.data.json_text import Found, read_json, read_notebook
from comigs_edge.data.sections import SECTION, sections
from comigs_edge.data.tables import read_table
from comigs_edge.data.walk import Walk, files_below, not_ordinary
from comigs_edge.errors import ComigsError
from comigs_edge.progress import SILENT, Progress, count_up
from coordinator.protocol.text import well_formed

_TABLES: dict[str, Callable[[str], Iterator[Found]]] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), read_json),
    **dict.fromkeys((".csv", ".tsv"), read_table),
}
_READERS = _TABLES | {".ipynb": read_notebook}
RECORDS = (*_TABLES, ".mbox", ".zip")  # their documents are the file's own, all others are cut from a text
_TEXTS = (".txt", ".md", ".markdown", ".org", ".rst")
SUFFIXES = (*_TEXTS, *_READERS, *IMPORTED, ".zip")
_PACKED = (".7z", ".rar", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst")

_TIME = re.compile(r"\d[:.]\d\d")


@dataclass
class Left:
    """Parts of files that were left out for one reason."""

    count: int
    first: str  # where the first of them stands

    def __str__(self) -> str:
        return f"{self.first}" if self.count == 1 else f"{self.count} times, first in {self.first}"


@dataclass
class Reading:
    """The content of the paths that the user named."""

    files: dict[Path, list[Document]] = field(default_factory=dict)
    empty: int = 0  # documents without a word
    skipped: list[tuple[Path, str]] = field(default_factory=list)  # files and folders that cannot be read, and why
    left: dict[str, Left] = field(default_factory=dict)  # lines and chats that are no documents, by their reason
    ignored: Counter[str] = field(default_factory=Counter)  # files of other kinds inside folders, by their ending
    missing: Counter[str] = field(default_factory=Counter)  # files that need the extra `import`, by their ending
    folders: Counter[str] = field(default_factory=Counter)  # folders that are passed over, by their name
    encodings: dict[Path, str] = field(default_factory=dict)  # of files that are not UTF-8
    tools: list[Path] = field(default_factory=list)  # exports of chat tools
    authors: frozenset[str] = frozenset()  # who wrote in conversations, as `name_key`
    owners: tuple[str, ...] = ()  # the names whose messages are learned, where there are conversations
    has_no_talk: bool = False  # though the owner was named
    unknown_talks: list[Path] = field(default_factory=list)  # plain text in which the named owner speaks at certain times

    def leave(self, odd: Odd, path: Path) -> None:
        """Counts what is left out."""
        place = f"{path.name}, line {odd.line}" if odd.line else path.name
        self.left.setdefault(odd.reason, Left(0, place)).count += 1


def _refuse(names: Counter[str]) -> Iterable[str]:
    raise ComigsError(f"which of these is you: {', '.join(names)}? say so with --me NAME")


def read(
    paths: list[Path], me: Iterable[str] | None = None, ask: Callable[[Counter[str]], Iterable[str]] = _refuse,
    progress: Progress = SILENT,
) -> Reading:  # fmt: skip
    """Reads files and folders (hidden ones and programs' own left out).

    In conversations of a messenger the messages of `me` become the assistant's; None: `ask` is called once with the authors
    that were found and how much they wrote, if there are any. Without a name (an empty `me`) they are read as plain text.
    `progress` gets bytes of files.
    Raises `ComigsError` for a path that does not exist, a named file of another kind, and where nothing could be read.
    """
    reading = Reading()
    found: dict[Path, list[Document | Conversation]] = {}
    with contextlib.closing(Importer()) as importer:
        sizes = _sizes(_files(paths, reading))
        advance = count_up(progress, sum(sizes.values()))
        for path, size in sizes.items():
            try:
                pieces = list(_found(path, importer, reading))
            except Unreadable as error:
                reading.skipped.append((path, str(error)))
                continue
            finally:
                advance(size)
            for piece in pieces:
                if isinstance(piece, Odd):
                    reading.leave(piece, path)
            kept = [_without_pictures(piece) for piece in pieces if not isinstance(piece, Odd)]
            if kept or not pieces:
                found[path] = kept
    owners = _owners(found.values(), me, ask, reading)
    if me is not None and owners:
        reading.has_no_talk = not any(isinstance(each, Conversation) for known in found.values() for each in known)
        reading.unknown_talks = [path for path, known in found.items() if any(_is_talk(each, owners) for each in known)]
    for path in list(found):  # given up one by one: what they hold stands in the documents
        reading.files[path] = _documents(path, found.pop(path), owners, reading)
    if not any(reading.files.values()) and not reading.empty:
        raise ComigsError(_nothing(paths, reading))
    return reading


def _sizes(paths: Iterable[Path]) -> dict[Path, int]:
    """Bytes of each file; one that is reached by several names is there once, under a name that is no link if it has one."""
    sizes: dict[Path, int] = {}
    names: dict[tuple[int, int], list[Path]] = {}
    for path in paths:
        try:
            status = path.stat()
            sizes[path] = status.st_size
            names.setdefault((status.st_dev, status.st_ino), []).append(path)
        except OSError:  # which reading it tells
            sizes[path] = 0
    for same in names.values():
        if len(same) > 1:
            places: dict[str, Path] = {}  # hard links have one each
            for path in sorted(same, key=lambda path: (os.path.realpath(path) != str(path), os.path.islink(path))):
                places.setdefault(os.path.realpath(path), path)
            for path in set(same).difference(places.values()):
                del sizes[path]
    return sizes


def _found(path: Path, importer: Importer, reading: Reading) -> Iterator[Found]:
    suffix = kind(path)
    if suffix in IMPORTED:
        yield from (Odd("a damaged mail") if text is None else Document(text=text) for text in importer.read(path))
        return
    for name, data in read_exports(path) if suffix == ".zip" else ((path, _bytes(path)),):
        text, encoding = decode(data)
        if encoding:
            reading.encodings[path] = encoding
        yield from _parts(kind(name), text)


def _parts(suffix: str, text: str) -> Iterator[Found]:
    if suffix in _READERS:
        yield from _READERS[suffix](text)
    elif conversation := talks.conversation(text):
        yield conversation
    else:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield Document(text=notes.CLEANERS.get(suffix, str)(text))


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    return unpack(data) if path.suffix.lower() == ".gz" else data


def kind(path: Path) -> str:
    """The ending that tells how a file is read; that of what a `.gz` holds."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        inner = Path(path.stem).suffix.lower()
        return inner if inner and inner not in (".gz", ".zip", *IMPORTED) else ".gz"
    return suffix


def _files(paths: list[Path], reading: Reading) -> Iterator[Path]:
    for path in paths:
        path = path.expanduser().absolute()
        if os.path.isdir(path):
            walk = Walk()
            for file in files_below(path, walk):
                if is_missing(kind(file)):
                    reading.missing[kind(file)] += 1
                elif kind(file) in SUFFIXES and (kind(file) != ".zip" or holds_export(file)):
                    yield file
                else:
                    reading.ignored[file.suffix.lower() or "without an ending"] += 1
            reading.folders += walk.folders
            reading.skipped += [(closed, why) for closed, why in walk.closed if os.path.isdir(closed) or kind(closed) in SUFFIXES]
        elif reason := not_ordinary(path):
            if reason == os.strerror(errno.ENOENT):
                raise ComigsError(f"{path} does not exist; name a folder or a file with text")
            reading.skipped.append((path, reason))
        elif kind(path) not in SUFFIXES:
            remedy = "unpack it and name its folder" if kind(path) in _PACKED else "save it as one of these"
            raise ComigsError(f"{path.name} cannot be read: only {', '.join(SUFFIXES)}; {remedy}")
        else:
            yield path


def _owners(
    found: Iterable[list[Document | Conversation]], me: Iterable[str] | None,
    ask: Callable[[Counter[str]], Iterable[str]], reading: Reading,
) -> frozenset[str]:  # fmt: skip
    conversations = [each for known in found for each in known if isinstance(each, Conversation)]
    names = Counter(turn.author for each in conversations if not each.is_tool and not each.own for turn in each.turns)
    if me is None:
        me = ask(names) if names else ()
    if names:
        reading.owners = tuple(name for name in me if name.strip())
    owners = frozenset(name_key(name) for name in me if name.strip())
    known_names = frozenset(name_key(author) for each in conversations for author in each.authors)
    reading.authors = known_names
    if owners and names and not owners & known_names:
        raise ComigsError(f"nobody is called {' or '.join(sorted(me))} there, but {_few(names)}; name one of them with --me")
    return owners


def _is_talk(piece: Document | Conversation, owners: frozenset[str]) -> bool:
    """Whether a text has lines with a time and a name of the owner, as chats have that are in no known form."""
    if isinstance(piece, Conversation) or piece.messages:
        return False
    lines = [name_key(line) for line in piece.text.split("\n") if _TIME.search(line[:200])]
    return sum(any(name in line for name in owners) for line in lines) > 1


def _few(names: Counter[str]) -> str:
    shown = [f'"{name}"' for name, _ in names.most_common(8)]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _documents(path: Path, found: list[Document | Conversation], owners: frozenset[str], reading: Reading) -> list[Document]:
    documents: list[Document] = []
    is_entry = kind(path) in _READERS  # what stands in a table or list keeps its white space
    for piece in found:
        if isinstance(piece, Conversation):
            documents += _chats(path, piece, owners, reading)
        elif piece.messages:
            documents.append(piece)
        elif is_entry and len(piece.text) <= SECTION:
            documents.append(Document(text=piece.text.strip()))
        else:
            documents += [Document(text=text) for text in sections(piece.text)]
    sound = [_sound(document) for document in documents]
    kept = [document for document in sound if document.words.strip()]
    reading.empty += len(sound) - len(kept)
    return kept


def _chats(path: Path, conversation: Conversation, owners: frozenset[str], reading: Reading) -> Iterable[Document]:
    if conversation.is_tool:
        reading.tools += [path] if path not in reading.tools[-1:] else []
    elif not owners and not conversation.own:
        return [Document(text=text) for text in sections(conversation.plain())]
    chats = list(conversation.chats(owners))
    if not chats:
        reading.leave(Odd("a conversation without an answer of yours"), path)
    return chats


def _without_pictures(piece: Document | Conversation) -> Document | Conversation:
    if isinstance(piece, Conversation):
        turns = [turn._replace(text=notes.drop_pictures(turn.text)) for turn in piece.turns]
        return replace(piece, turns=[turn for turn in turns if turn.text.strip()])
    messages = tuple(message._replace(content=notes.drop_pictures(message.content)) for message in piece.messages)
    return replace(piece, text=notes.drop_pictures(piece.text), messages=messages)


def _sound(document: Document) -> Document:
    """The same with U+FFFD for halves of characters, which cannot be stored."""
    messages = tuple(message._replace(content=well_formed(message.content)) for message in document.messages)
    return replace(document, text=well_formed(document.text), messages=messages)


def _nothing(paths: list[Path], reading: Reading) -> str:
    reasons = [f"{reason} ({left})" for reason, left in reading.left.items()]
    reasons += [f"{path.name}: {why}" for path, why in reading.skipped]
    if reading.missing:
        reasons.append(f"{sum(reading.missing.values())} files need: {INSTALL}")
    where = ", ".join(map(str, paths))
    if not reasons:
        return f"no {', '.join(SUFFIXES)} file in {where}; name a folder or a file with text"
    wanted = (
        f"; a line is read that has {shapes.WANTED}" if any("keys" in each or "JSON" in each for each in reading.left) else ""
    )
    more = f" and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
    return f"nothing in {where} could be read: {'; '.join(reasons[:3])}{more}{wanted}"
