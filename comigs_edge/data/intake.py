"""Files on their way into a corpus: which of them are moved, edited or gone, and what they say now.

An edited document keeps the split of the one whose place it has, so a text that was learned is never tested on.
A file stays as it was added, local or not, until it is added otherwise.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from comigs_edge.data.arrangement import SPLITS, Split
from comigs_edge.data.chats import traits, written
from comigs_edge.data.document import Document
from comigs_edge.data.documents import RECORDS, kind
from comigs_edge.data.editing import match, recut
from comigs_edge.data.folders import Manner, folders_of, keep_out, read_manner, stored_name
from comigs_edge.data.forgotten import remember_documents, remember_file
from comigs_edge.data.runs import NO_RUNS, Runs, find_origins, join_runs, runs_of, shared
from comigs_edge.progress import Advance

# As the templates of ChatML, Llama 2 and 3, Gemma, Phi and DeepSeek write them.
_CONTROL = re.compile(r"<[|｜]\w+(?:[ ▁]\w+)*[|｜]>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>")


class _Old(NamedTuple):
    """A document of a file that is added again."""

    id: int
    place: int
    sha256: str
    kind: str
    split: str | None
    seen: int
    content: str
    runs: bytes
    local: int  # of its file


@dataclass
class Changes:
    """What became of files that were added before."""

    moved: int = 0
    changed: int = 0
    read_anew: int = 0  # untouched since they were read last, and read otherwise now
    gone: int = 0
    unscored: int = 0  # new messages of the assistant that are not to be learned
    control_tokens: int = 0  # new documents with control tokens written out
    made_local: int = 0  # files that were shared until now
    new: set[int] = field(default_factory=set)  # numbers of the documents that are there for the first time
    lost: list[_Old] = field(default_factory=list)  # learned documents that are deleted


def take_in(
    db: sqlite3.Connection, found: Mapping[Path, list[Document]], folders: Iterable[Path], advance: Advance,
    manner: Manner,
) -> Changes:  # fmt: skip
    """Takes in the documents of files; inside `folders` a file that is no longer there gives its documents up.

    What `manner` leaves open is for a new file as for the folder that it is in, and stays for others as it was.
    """
    changes = Changes()
    known = {path: number for number, path in db.execute("select id, path from source")}
    here = {stored_name(path) for path in found}
    gone = {name: number for name, number in known.items() if name not in here and _is_gone(name)}
    moved = _find_moved(db, {path: documents for path, documents in found.items() if stored_name(path) not in known}, gone)
    for path, number in moved.items():
        db.execute("update source set path = ? where id = ?", (stored_name(path), number))
        known[stored_name(path)] = number
    changes.moved = len(moved)
    for name, number in gone.items():
        if number not in moved.values() and any(Path(name).is_relative_to(folder) for folder in folders):
            changes.lost += _remove(db, number)
            changes.gone += 1
    read_at = {number: datetime.fromisoformat(f"{at}+00:00") for number, at in db.execute("select id, added from source")}
    for path, documents in found.items():
        source = known.get(stored_name(path))
        if source is None:
            row = stored_name(path), *read_manner(db, path)
            source = int(db.execute("insert into source (path, local, with_secrets) values (?, ?, ?)", row).lastrowid or 0)
        if manner.local is not None:
            changes.made_local += _set_local(db, source, manner.local) and source in read_at
        if manner.with_secrets is not None:
            db.execute("update source set with_secrets = ? where id = ?", (manner.with_secrets, source))
        db.executemany("delete from kept_out where path = ?", [(each,) for each in (stored_name(path), *folders_of(path))])
        _replace(db, source, path, documents, changes, read_at.get(source), advance)
    _remember(db, changes.lost)
    db.execute("delete from source where id not in (select source from document)")
    return changes


def forget(db: sqlite3.Connection, source: int, stays_out: bool = False) -> None:
    """Deletes a file and its documents; that and where they were learned is kept.

    `stays_out`: they are not added again, but on demand.
    """
    hashes = remember_file(db, source) if stays_out else []
    _remember(db, _remove(db, source))
    remember_documents(db, hashes)
    keep_out(db, source)
    db.execute("delete from source where id = ?", (source,))


def read_gone(db: sqlite3.Connection, local: bool) -> dict[Split, Runs]:
    """The runs of text that was learned and is no longer there, by its split; of what is local, or of the other text."""
    rows = db.execute("select split, runs from gone where local = ?", (local,))
    return {split: np.frombuffer(runs, np.uint32) for split, runs in rows}


def _set_local(db: sqlite3.Connection, source: int, local: bool) -> bool:
    """Whether a file that was shared is local now. Other text is split as if it were gone: that it was learned stays known."""
    (before,) = db.execute("select local from source where id = ?", (source,)).fetchone()
    if before == local:
        return False
    if local:
        _remember(db, [each for each in _read_old(db, source) if each.seen])
    db.execute("update source set local = ? where id = ?", (local, source))
    return local


def _remember(db: sqlite3.Connection, lost: list[_Old]) -> None:
    """Keeps the runs of learned documents that are deleted; writes all that is kept, so it is called once for all files."""
    for local in (False, True):
        gone = read_gone(db, local)
        for split in SPLITS:
            if runs := [np.frombuffer(each.runs, np.uint32) for each in lost if (each.split, each.local) == (split, local)]:
                joined = join_runs([*runs, gone.get(split, NO_RUNS)])
                db.execute("insert or replace into gone values (?, ?, ?)", (split, local, joined.tobytes()))


def _read_hashes(db: sqlite3.Connection, source: int) -> list[str]:
    return [sha256 for (sha256,) in db.execute("select sha256 from document where source = ? order by place", (source,))]


def _read_old(db: sqlite3.Connection, source: int) -> list[_Old]:
    columns = "document.id, place, sha256, kind, split, seen, content, runs, local"
    query = f"select {columns} from document join source on source.id = source where source = ? order by place"
    return [_Old(*row) for row in db.execute(query, (source,))]


def _remove(db: sqlite3.Connection, source: int) -> list[_Old]:
    """Deletes the documents of a file, which is known as removed from now on; returns those that were learned."""
    db.execute("insert into removed values (?)", (source,))
    return _delete(db, _read_old(db, source))


def _delete(db: sqlite3.Connection, documents: list[_Old]) -> list[_Old]:
    """Deletes them; returns those that were learned, without their text."""
    db.executemany("delete from document where id = ?", [(each.id,) for each in documents])
    return [each._replace(content="") for each in documents if each.seen]


def _is_gone(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def _find_moved(db: sqlite3.Connection, new: Mapping[Path, list[Document]], gone: Mapping[str, int]) -> dict[Path, int]:
    """New files with at least half of the text of one that is gone, and the number of that one; each is found once."""
    numbers = list(gone.values())
    if not new or not numbers:
        return {}
    old = [join_runs(_runs(db, number)) for number in numbers]
    texts = [join_runs([runs_of(written(document)) for document in documents]) for documents in new.values()]
    moved: dict[Path, int] = {}
    for path, text, origin in zip(new, texts, find_origins(texts, old), strict=True):
        if origin is not None and numbers[origin] not in moved.values() and 2 * shared(text, old[origin]) >= len(old[origin]):
            moved[path] = numbers[origin]
    return moved


def _runs(db: sqlite3.Connection, source: int) -> list[Runs]:
    rows = db.execute("select runs from document where source = ?", (source,)).fetchall()
    return [np.frombuffer(runs, np.uint32) for (runs,) in rows]


def _replace(
    db: sqlite3.Connection, source: int, path: Path, documents: list[Document], changes: Changes, read_at: datetime | None,
    advance: Advance,
) -> None:  # fmt: skip
    """Puts the documents of a file in the place of those that it had when it was read, at `read_at`."""
    if read_at is not None and [document.sha256 for document in documents] == _read_hashes(db, source):  # as it was
        advance(sum(len(document.words) for document in documents))
        return
    old = _read_old(db, source) if read_at is not None else []
    kinds = {each.kind for each in old} | {each.kind for each in documents}
    if old and kind(path) not in RECORDS and kinds == {"text"}:
        documents, origins = _recut(documents, old)
    else:
        new = [(document.sha256, written(document)) for document in documents] if old else []
        known = [(each.sha256, np.frombuffer(each.runs, np.uint32)) for each in old]
        origins = match(new, known) if old else [None] * len(documents)
    kept = set()
    for place, (document, origin) in enumerate(zip(documents, origins, strict=True)):
        before = None if origin is None else old[origin]
        sha256 = document.sha256
        if before is not None and before.sha256 == sha256:
            kept.add(before.id)
            if before.place != place:
                db.execute("update document set place = ? where id = ?", (place, before.id))
        else:
            changes.new.add(_insert(db, source, place, document, sha256, before))
            changes.unscored += sum(not message.scored for message in document.messages)
            changes.control_tokens += bool(_CONTROL.search(document.words))
        advance(len(document.words))
    lost = [each for each in old if each.id not in kept]
    changes.lost += _delete(db, lost)
    if old and (lost or len(kept) < len(documents)):
        untouched = read_at is not None and path.stat().st_ctime < read_at.timestamp()
        changes.read_anew += untouched
        changes.changed += not untouched
        if not documents and not untouched:
            db.execute("insert into removed values (?)", (source,))
        db.execute("update source set added = current_timestamp where id = ?", (source,))


def _recut(documents: list[Document], old: list[_Old]) -> tuple[list[Document], list[int | None]]:
    """The documents of a text file, cut where it was cut before, and whose place each has."""
    pieces = recut([document.text for document in documents], [Document.from_json(each.content).text for each in old])
    origins = [piece.origin for piece in pieces]
    free = iter(sorted(set(range(len(old))) - set(origins)))
    # What was written anew from its first to its last word still has a place.
    origins = [next(free, None) if origin is None else origin for origin in origins]
    return [Document(text=piece.text) for piece in pieces], origins


def _insert(
    db: sqlite3.Connection, source: int, place: int, document: Document, sha256: str, before: _Old | None
) -> int:  # fmt: skip
    split, seen = (before.split, before.seen) if before is not None else (None, 0)
    row = {
        "source": source, "place": place, "sha256": sha256, "kind": document.kind, "split": split, "seen": seen,
        "bytes": len(document.words.encode()), "content": document.to_json(), **traits(document),
    }  # fmt: skip
    insert = f"insert into document ({', '.join(row)}) values ({', '.join('?' * len(row))})"
    return int(db.execute(insert, tuple(row.values())).lastrowid or 0)
