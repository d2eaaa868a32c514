"""An SQLite file of one process: one connection, every write durable when the call returns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUSY_SECONDS = 2.0  # to wait for another program that has the file open


class SQLiteFile:
    """The file at `path`; raises `sqlite3.Error` where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row

    def _use_alone(self, journal: str) -> None:
        # From the first write on no other program reads it either: a reader would hold up every later write.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute(f"PRAGMA journal_mode={journal}")
        # EXTRA also syncs the folder after the rollback journal is gone.
        self._db.execute(f"PRAGMA synchronous={'FULL' if journal == 'WAL' else 'EXTRA'}")

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside happen together, or none does."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite may have rolled back already, as on a full disk
                self._db.execute("ROLLBACK")
            raise

    def run(self, statement: str, *values: Any) -> int:
        """One statement; returns the number of rows that it changed."""
        return self._db.execute(statement, values).rowcount

    def row(self, query: str, *values: Any) -> dict[str, Any] | None:
        """The first row, or None."""
        row = self._db.execute(query, values).fetchone()
        return None if row is None else dict(row)

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """All rows."""
        return [dict(row) for row in self._db.execute(query, values)]

    def each(self, query: str, *values: Any) -> Iterator[dict[str, Any]]:
        """All rows, one after the other."""
        for row in self._db.execute(query, values):
            yield dict(row)

    def value(self, query: str, *values: Any) -> Any:
        """The first column of the first row; None without a row."""
        row = self._db.execute(query, values).fetchone()
        return None if row is None else row[0]
