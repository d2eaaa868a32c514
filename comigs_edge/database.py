"""SQLite files for their owner alone: made where they are missing, and taken over from earlier versions."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from comigs_edge import files
from comigs_edge.errors import ComigsError


@contextlib.contextmanager
def open_database(path: Path, scripts: Sequence[str]) -> Iterator[sqlite3.Connection]:
    """One transaction on the file at `path`, which is made where it is missing; an error undoes all of it.

    `scripts[n]` makes the newest version of one of version n; those of version 0 have no tables. Raises `ComigsError` for a
    newer one, a damaged one, and whatever SQLite cannot do.
    """
    if not path.exists():  # one that is there may be on a disk that can only be read
        files.make_folder(path.parent)
        path.touch(mode=0o600)
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as db, db:
            db.execute("pragma synchronous = full")
            db.execute("pragma secure_delete = on")  # removed text does not linger in free pages
            version = db.execute("pragma user_version").fetchone()[0]
            if version > len(scripts):
                raise ComigsError(f"{path} was made by a newer comigs-edge; upgrade comigs-edge")
            if version < len(scripts):
                _upgrade(db, scripts)
            yield db
    except sqlite3.Error as error:
        raise ComigsError(f"{path}: {error}; nothing was changed") from error


def fetch(db: sqlite3.Connection, sql: str, *values: Any) -> list[dict[str, Any]]:
    """What a query finds, by the names of its columns."""
    cursor = db.execute(sql, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _upgrade(db: sqlite3.Connection, scripts: Sequence[str]) -> None:
    """All statements of a script in one transaction; `executescript` would commit between them."""
    db.execute("begin immediate")
    version = db.execute("pragma user_version").fetchone()[0]
    if version == len(scripts):
        return  # another process was first
    for statement in filter(str.strip, scripts[version].split(";\n")):
        db.execute(statement)
    db.execute(f"pragma user_version = {len(scripts)}")
