"""The coordinator's ledger: one SQLite file, one connection, every write durable when the call returns.

Before SQLite 3.51.3 (and its backports) a write-ahead log could be damaged when it was reset (sqlite.org/wal.html), and boards
link older ones: there the rollback journal is used.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from coordinator.ledger import checksums
from coordinator.ledger.sqlite_file import SQLiteFile
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.text import printable

FIXED = ((3, 51, 3), (3, 50, 7), (3, 44, 6))  # releases with the repair, newest first; each in its own series
MIGRATIONS = (
    """
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE invitations (
        code TEXT PRIMARY KEY, name TEXT, made REAL NOT NULL, expires REAL NOT NULL, device TEXT
    ) STRICT;
    CREATE TABLE devices (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, public_key TEXT NOT NULL UNIQUE, joined REAL NOT NULL,
        last_contact REAL NOT NULL, revoked REAL, version TEXT NOT NULL, validation_loss REAL,
        bytes_in INTEGER NOT NULL DEFAULT 0, bytes_out INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE rounds (
        number INTEGER PRIMARY KEY, opened REAL NOT NULL, closed REAL, published REAL,
        sha256 TEXT, size INTEGER, devices INTEGER, manifest TEXT, signature TEXT, rolled_back_to INTEGER
    ) STRICT;
    CREATE TABLE updates (
        device TEXT NOT NULL, round INTEGER NOT NULL, sha256 TEXT NOT NULL, trained_from INTEGER NOT NULL,
        weight INTEGER NOT NULL, tokens INTEGER NOT NULL, size INTEGER NOT NULL, format TEXT NOT NULL,
        averaging TEXT NOT NULL, validation_loss REAL, received REAL NOT NULL,
        PRIMARY KEY (device, round), UNIQUE (device, sha256, trained_from)
    ) STRICT;
    CREATE INDEX updates_by_round ON updates (round);
    CREATE TABLE refusals (
        device TEXT NOT NULL, round INTEGER NOT NULL, loss_before REAL NOT NULL, loss_after REAL NOT NULL,
        PRIMARY KEY (device, round)
    ) STRICT;
    """,
    # An update is known by its id; without one, as before there were ids, by its payload and origin.
    """
    ALTER TABLE updates RENAME TO updates_1;
    DROP INDEX updates_by_round;
    CREATE TABLE updates (
        device TEXT NOT NULL, round INTEGER NOT NULL, sha256 TEXT NOT NULL, trained_from INTEGER NOT NULL,
        weight INTEGER NOT NULL, tokens INTEGER NOT NULL, size INTEGER NOT NULL, format TEXT NOT NULL,
        averaging TEXT NOT NULL, validation_loss REAL, received REAL NOT NULL, update_id TEXT,
        PRIMARY KEY (device, round), UNIQUE (device, update_id)
    ) STRICT;
    INSERT INTO updates SELECT *, NULL FROM updates_1;
    DROP TABLE updates_1;
    CREATE INDEX updates_by_round ON updates (round);
    CREATE INDEX updates_by_payload ON updates (device, sha256, trained_from);
    """,
    # Norms of updates, how far they are from the others, what was lost; changes between generalists; refusals without losses.
    """
    ALTER TABLE updates ADD COLUMN norm REAL;
    ALTER TABLE updates ADD COLUMN counted_weight INTEGER;
    ALTER TABLE updates ADD COLUMN distance REAL;
    ALTER TABLE updates ADD COLUMN lost TEXT;
    ALTER TABLE rounds ADD COLUMN change_sha256 TEXT;
    ALTER TABLE rounds ADD COLUMN change_size INTEGER;
    ALTER TABLE rounds ADD COLUMN lost TEXT;
    ALTER TABLE devices ADD COLUMN joined_at INTEGER NOT NULL DEFAULT -1;
    UPDATE devices SET joined_at = coalesce((SELECT max(number) FROM rounds WHERE published <= devices.joined), -1);
    ALTER TABLE refusals RENAME TO refusals_2;
    CREATE TABLE refusals (
        device TEXT NOT NULL, round INTEGER NOT NULL, loss_before REAL, loss_after REAL, PRIMARY KEY (device, round)
    ) STRICT;
    INSERT INTO refusals SELECT * FROM refusals_2;
    DROP TABLE refusals_2;
    """,
    # Which removed device a new one with another key goes on for; a checksum of every row.
    """
    ALTER TABLE devices ADD COLUMN former TEXT;
    CREATE TABLE checksums (
        name TEXT NOT NULL, row TEXT NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (name, row)
    ) STRICT, WITHOUT ROWID;
    """,
)
CHECKSUMS = 4  # the first version that has them


class DamagedLedger(CoordinatorError):
    """Pages of the ledger, its tables or rows, cannot be used; `reason` says which."""

    def __init__(self, reason: str) -> None:
        self.reason = printable(reason)
        super().__init__(f"{self.reason}; mend it with: comigs-coordinator check --repair")


class Database(SQLiteFile):
    """The ledger. `journal` is what the version gate chose."""

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path)
        except sqlite3.OperationalError as error:
            reason = "it is no file" if path.exists() and not path.is_file() else str(error)
            raise CoordinatorError(
                f"{path} cannot be opened ({reason}); give it to the user that runs the coordinator, or restore it from a backup"
            ) from error
        try:
            self._db.text_factory = read_text
            checksums.register(self._db)
            self.journal = journal_mode(sqlite3.sqlite_version_info)
            self._use_alone(self.journal)
            self._db.execute("PRAGMA foreign_keys=ON")
            self._check_version()
            self._migrate()
            self.run("BEGIN EXCLUSIVE")
            self.run("COMMIT")
            if (flaw := self.value("PRAGMA quick_check(1)")) != "ok":
                raise sqlite3.DatabaseError(str(flaw).splitlines()[-1])
            if not checksums.is_schema_sound(self._db):
                raise sqlite3.DatabaseError("its tables are not those that were made")
            self._add_indices()
            checksums.keep(self._db)
        except sqlite3.OperationalError as error:
            self._db.close()
            if "locked" in str(error):
                raise CoordinatorError(f"another program has {path} open; end it, and start again") from error
            if "file format" in str(error):  # SQLite's word for a damaged header
                raise DamagedLedger(f"{path} is damaged ({error})") from error
            raise CoordinatorError(f"{path} cannot be opened ({error}); make room on its disk or check it") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter from SQLite's own words about a damaged schema
            self._db.close()
            raise DamagedLedger(f"{path} is damaged ({error})") from error

    def fact(self, name: str) -> str | None:
        """A named text."""
        value: str | None = self.value("SELECT value FROM facts WHERE name = ?", name)
        return value

    def set_fact(self, name: str, value: str) -> None:
        """Keeps a named text."""
        self.run("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, value)

    def backup(self, target: Path) -> None:
        """A consistent copy, while the coordinator works."""
        with closing(sqlite3.connect(target)) as copy, copy:
            self._db.backup(copy)

    def changed(self) -> list[checksums.Row]:
        """The rows that are not what was written."""
        return checksums.changed(self._db)

    def accept(self, row: checksums.Row) -> None:
        """Takes a row that was changed as it is."""
        checksums.accept(self._db, row)

    def _add_indices(self) -> None:
        """Finds what was lost without reading every row; no version of its own: older programs use the ledger with them too."""
        if self.value("SELECT 1 FROM sqlite_master WHERE name = 'rounds_lost'") is None:
            with self.transaction():
                self.run("CREATE INDEX updates_lost ON updates (round) WHERE lost IS NOT NULL")
                self.run("CREATE INDEX rounds_lost ON rounds (number) WHERE lost IS NOT NULL")
                checksums.accept_schema(self._db)

    def _check_version(self) -> None:
        """Raises `sqlite3.DatabaseError` where the version is not that of the tables."""
        version = self.value("PRAGMA user_version")
        tables = {row["name"] for row in self.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if version > len(MIGRATIONS) and version < 1000:
            return  # of a newer program
        if not 0 <= version < 1000 or bool(tables) != (version > 0) or ("checksums" in tables) != (version >= CHECKSUMS):
            raise sqlite3.DatabaseError(f"its version is {version}, and its tables are of another")

    def _migrate(self) -> None:
        version = self.value("PRAGMA user_version")
        if version > len(MIGRATIONS):
            raise CoordinatorError(
                f"{self.path} was made by a newer comigs-coordinator (schema {version}, this one knows {len(MIGRATIONS)}); "
                "upgrade comigs-edge"
            )
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            if version:
                self.backup(self.path.with_suffix(f".before-{number}.db"))
            with self.transaction():
                for statement in filter(str.strip, statements.split(";")):
                    self.run(statement)
                if number >= CHECKSUMS:
                    checksums.write(self._db)
                self.run(f"PRAGMA user_version={number}")


def read_text(data: bytes) -> str:
    """A text of the ledger; a damaged one is no error: its row's checksum says so."""
    return data.decode(errors="backslashreplace")


def journal_mode(version: tuple[int, int, int]) -> str:
    """WAL if this SQLite resets it safely, else TRUNCATE."""
    newest = FIXED[0]
    is_fixed = version >= newest or any(version[:2] == fixed[:2] and version >= fixed for fixed in FIXED)
    return "WAL" if is_fixed else "TRUNCATE"
