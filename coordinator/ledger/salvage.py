"""A damaged ledger is written anew: every row that can be read, each mended or left out, in a file without the damage."""

from __future__ import annotations

import contextlib
import sqlite3
from contextlib import closing
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.ledger.checksums import KEYS
from coordinator.ledger.database import Database, read_text
from coordinator.ledger.mending import mend_rows
from coordinator.ledger.payloads import Payloads
from coordinator.ledger.restoration import BACKUP, RESTORE
from coordinator.protocol.errors import CoordinatorError


def rebuild(
    path: Path, payloads: Payloads, key: Ed25519PrivateKey, now: float, *, replace: bool, has_gaps: bool
) -> list[str]:  # fmt: skip
    """Makes the new file, and with `replace` puts it in the place of the old one, which is set aside; returns what was done.

    `has_gaps`: of pages that cannot be read. Raises `CoordinatorError`, and leaves all as it is, where too little can be read:
    so without `replace` it says whether it would do.
    """
    new, aside = path.with_suffix(".recovered.db"), path.with_suffix(".damaged.db")
    _delete(new)
    try:
        with closing(Database(new)) as database:
            count = _copy(path, database)
            if not _holds_a_fleet(database):
                raise CoordinatorError(f"{path} is damaged, and too little of it can be read; {RESTORE}")
            done = mend_rows(database, payloads, key, now)
            if has_gaps:  # what came last may be missing, and nobody knows: as in a backup
                database.set_fact(BACKUP, str(now))
        if replace:
            path.replace(aside)
            finish(path)
        return [f"{count} rows of the ledger were read; the damaged file is {aside.name}", *done]
    finally:
        _delete(new)


def finish(path: Path) -> None:
    """Puts a file that was made whole in the place of the one that was set aside; also after a kill between the two."""
    new = path.with_suffix(".recovered.db")
    if new.exists() and not path.exists():
        _delete(path)  # the journal of the one before
        new.replace(path)


def _holds_a_fleet(database: Database) -> bool:
    """Its id and a round; and what it trains, if a generalist was published."""
    if database.fact("fleet") is None or database.value("SELECT 1 FROM rounds") is None:
        return False
    published = database.value("SELECT 1 FROM rounds WHERE published IS NOT NULL")
    return published is None or database.fact("generalist") is not None


def _delete(path: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _copy(path: Path, new: Database) -> int:
    """Every row that can be read from either end of its table, as it is; returns how many."""
    count = 0
    with closing(sqlite3.connect(path)) as old, new.transaction():
        old.row_factory, old.text_factory = sqlite3.Row, read_text
        old.execute("PRAGMA writable_schema=ON")  # so that one whose end is gone can be opened
        for table in KEYS:
            for order in ("ASC", "DESC"):
                count += _copy_table(old, new, table, f"rowid {order}")
        new.run("DELETE FROM checksums WHERE name <> 'schema'")
        for order in ("ASC", "DESC"):
            _copy_table(old, new, "checksums", f"name {order}, row {order}")
    return count


def _copy_table(old: sqlite3.Connection, new: Database, table: str, order: str) -> int:
    count = 0
    with contextlib.suppress(sqlite3.DatabaseError, UnicodeDecodeError):  # the rows behind a damaged page
        for row in old.execute(f"SELECT * FROM {table} ORDER BY {order}"):
            names, marks = ", ".join(row.keys()), ", ".join("?" * len(row))
            with contextlib.suppress(sqlite3.DatabaseError):  # a value of a type that its column does not hold
                count += new.run(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", *row)
    return count
