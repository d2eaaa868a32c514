"""What was added, and in which manner: for those who read it again without being asked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Manner(NamedTuple):
    """How text is taken in; None: as before."""

    local: bool | None = None  # only specialists and router learn it
    with_secrets: bool | None = None  # also what looks like a secret
    forgotten: bool = False  # also what was forgotten


def stored_name(path: Path) -> str:
    """The path as it is stored: a name need not be UTF-8, its other bytes are written as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def remember_folders(db: sqlite3.Connection, folders: Iterable[Path], manner: Manner) -> None:
    """Keeps which folders were added, for those who read them again, and in which manner."""
    query = (
        "insert into folder values (:path, coalesce(:local, 0), coalesce(:with_secrets, 1)) on conflict (path) do update set "
        "local = coalesce(:local, local), with_secrets = coalesce(:with_secrets, with_secrets)"
    )
    for folder in folders:
        db.execute(query, {"path": stored_name(folder), "local": manner.local, "with_secrets": manner.with_secrets})


def read_manner(db: sqlite3.Connection, path: Path) -> tuple[bool, bool]:
    """Whether a file is local, and with secrets; a new one is as the nearest of the folders that were added and hold it."""
    rows = db.execute("select local, with_secrets from source where path = ?", (stored_name(path),)).fetchall()
    for folder in () if rows else folders_of(path):
        rows = rows or db.execute("select local, with_secrets from folder where path = ?", (folder,)).fetchall()
    local, with_secrets = rows[0] if rows else (False, True)
    return bool(local), bool(with_secrets)


def folders_of(path: Path) -> list[str]:
    """Those that a file is in, the nearest first, as they are stored."""
    return [str(folder) for folder in Path(stored_name(path)).parents]


def keep_out(db: sqlite3.Connection, source: int) -> None:
    """A file that the user removes is not read again with its folder, until it is added by name or with the folder."""
    db.execute("insert or ignore into kept_out select path from source where id = ?", (source,))


def forget_folders(db: sqlite3.Connection, top: Path) -> None:
    """What was added as a folder inside `top`, or as itself, is not read again, nor is anything in it with a folder around it."""
    folders = {Path(path) for (path,) in db.execute("select path from folder")}
    gone = {path for path in folders if path.is_relative_to(stored_name(top))}
    db.executemany("delete from folder where path = ?", [(str(path),) for path in gone])
    db.execute("insert or ignore into kept_out values (?)", (stored_name(top),))
    for (path,) in db.execute("select path from kept_out").fetchall():
        if not (folders - gone).intersection(Path(path).parents):  # nothing would read it
            db.execute("delete from kept_out where path = ?", (path,))


def read_added(db: sqlite3.Connection) -> tuple[list[Path], list[Path], set[Path]]:
    """Folders that were added, files that were added outside of them, and files and folders inside that are kept out."""
    folders = [Path(path) for (path,) in db.execute("select path from folder order by path")]
    folders = [path for path in folders if not any(parent in folders for parent in path.parents)]
    files = [Path(path) for (path,) in db.execute("select path from source order by path")]
    alone = [path for path in files if not any(path.is_relative_to(folder) for folder in folders)]
    return folders, alone, {Path(path) for (path,) in db.execute("select path from kept_out")}
