"""What was forgotten stays out when it is read again: files by their paths, also edited ones, and documents by their SHA-256."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from comigs_edge.data.document import Document
from comigs_edge.data.folders import stored_name

Found = Mapping[Path, list[Document]]


def remember_file(db: sqlite3.Connection, source: int) -> list[str]:
    """A file that is to be forgotten is not read again; returns the hashes of its documents."""
    db.execute("insert or ignore into forgotten_file select path from source where id = ?", (source,))
    return [sha256 for (sha256,) in db.execute("select sha256 from document where source = ?", (source,))]


def remember_documents(db: sqlite3.Connection, hashes: Iterable[str]) -> None:
    """These were forgotten, but for those that another file has, which stays."""
    query = "insert or ignore into forgotten select :sha256 where not exists (select 1 from document where sha256 = :sha256)"
    db.executemany(query, [{"sha256": sha256} for sha256 in hashes])


def leave_out(db: sqlite3.Connection, found: Found) -> tuple[dict[Path, list[Document]], int]:
    """The files and documents that nobody has forgotten, and the number of the other documents."""
    paths = {path for (path,) in db.execute("select path from forgotten_file")}
    hashes = {sha256 for (sha256,) in db.execute("select sha256 from forgotten")}
    rest = {
        path: [each for each in documents if each.sha256 not in hashes] if hashes else documents
        for path, documents in found.items()
        if stored_name(path) not in paths
    }
    # A file that is forgotten whole is as one that was not read; one that is empty is not.
    rest = {path: documents for path, documents in rest.items() if documents or not found[path]}
    return rest, sum(map(len, found.values())) - sum(map(len, rest.values()))


def allow(db: sqlite3.Connection, found: Found) -> None:
    """These files and documents are as if nobody had forgotten them."""
    allow_files(db, found)
    db.executemany("delete from forgotten where sha256 = ?", [(each.sha256,) for every in found.values() for each in every])


def allow_files(db: sqlite3.Connection, paths: Iterable[Path]) -> None:
    """Of these files only the forgotten documents stay out, and not what is new in them."""
    db.executemany("delete from forgotten_file where path = ?", [(stored_name(path),) for path in paths])
