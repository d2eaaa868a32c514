"""A checksum of every row of the ledger: SQLite looks after its own pages, and sees no change of what stands in them.

Triggers of the connection write them with the rows, so that none is forgotten; what the ledger's `checksums` does not confirm was
changed by a disk, or by another program.
"""

from __future__ import annotations

import sqlite3
import zlib
from typing import Literal, NamedTuple

KEYS = {
    "facts": ("name",), "invitations": ("code",), "devices": ("id",), "rounds": ("number",), "updates": ("device", "round"),
    "refusals": ("device", "round"),
}  # fmt: skip  # of each table
SCHEMA = "coalesce(sum(checksum(name, CAST(sql AS BLOB))), 0) FROM main.sqlite_schema WHERE sql IS NOT NULL"


class Row(NamedTuple):
    """A row that is not what was written; the `unknown` one has no checksum."""

    table: str
    key: str
    state: Literal["changed", "gone", "unknown"]


def keep(connection: sqlite3.Connection) -> None:
    """From now on every write of this connection brings its checksum along."""
    for table in KEYS:
        forget = "DELETE FROM checksums WHERE name = '{}' AND row = {};".format
        enter = f"INSERT INTO checksums VALUES ('{table}', {_key(table, 'NEW.')}, {_sum(connection, table, 'NEW.')});"
        old, new = forget(table, _key(table, "OLD.")), forget(table, _key(table, "NEW.")) + enter
        for event, steps in (("INSERT", new), ("UPDATE", old + new), ("DELETE", old)):
            connection.execute(f"CREATE TEMP TRIGGER {table}_{event} AFTER {event} ON main.{table} BEGIN {steps} END")


def register(connection: sqlite3.Connection) -> None:
    """Gives SQL the function that makes a checksum."""
    connection.create_function("checksum", -1, lambda *values: zlib.crc32(repr(values).encode()), deterministic=True)


def write(connection: sqlite3.Connection) -> None:
    """Takes every row, and the schema, as they are."""
    connection.execute("DELETE FROM checksums")
    accept_schema(connection)
    for table in KEYS:
        connection.execute(f"INSERT INTO checksums SELECT '{table}', {_key(table)}, {_sum(connection, table)} FROM {table}")


def accept_schema(connection: sqlite3.Connection) -> None:
    """Takes the tables and indices as they are."""
    connection.execute(f"INSERT OR REPLACE INTO checksums SELECT 'schema', '', {SCHEMA}")


def accept(connection: sqlite3.Connection, row: Row) -> None:
    """Takes one row as it is; one that is gone is forgotten."""
    connection.execute("DELETE FROM checksums WHERE name = ? AND row = ?", (row.table, row.key))
    if row.state != "gone":
        columns = f"'{row.table}', {_key(row.table)}, {_sum(connection, row.table)}"
        connection.execute(f"INSERT INTO checksums SELECT {columns} FROM {row.table} WHERE {_key(row.table)} = ?", (row.key,))


def is_schema_sound(connection: sqlite3.Connection) -> bool:
    """Whether the tables are those that were made."""
    query = f"SELECT (SELECT checksum FROM checksums WHERE name = 'schema') = (SELECT {SCHEMA})"
    return bool(connection.execute(query).fetchone()[0])


def changed(connection: sqlite3.Connection) -> list[Row]:
    """The rows that are not what was written."""
    found = []
    for table in KEYS:
        rows = f"SELECT {_key(table)} AS key, {_sum(connection, table)} AS sum FROM {table}"
        here = connection.execute(
            f"SELECT key, checksum FROM ({rows}) LEFT JOIN checksums ON name = '{table}' AND row = key WHERE checksum IS NOT sum"
        ).fetchall()
        found += (rows_here := [Row(table, key, "unknown" if checksum is None else "changed") for key, checksum in here])
        count = f"SELECT (SELECT count(*) FROM checksums WHERE name = '{table}') - (SELECT count(*) FROM {table})"
        unknown = sum(row.state == "unknown" for row in rows_here)
        if connection.execute(count).fetchone()[0] + unknown:  # otherwise none is gone, and nobody needs to look for it
            gone = f"SELECT row FROM checksums WHERE name = '{table}' AND row NOT IN (SELECT {_key(table)} FROM {table})"
            found += [Row(table, key, "gone") for (key,) in connection.execute(gone)]
    return found


def where(table: str) -> str:
    """The condition that finds a row by its key; an expression, so that no damaged index is asked."""
    return f"{_key(table)} = ?"


def keyed(table: str) -> str:
    """The query for every row of a table, with its `row_key`."""
    return f"SELECT {_key(table)} AS row_key, * FROM {table}"


def _key(table: str, prefix: str = "") -> str:
    return " || ' ' || ".join(f"{prefix}{name}" for name in KEYS[table]) + (" || ''" if len(KEYS[table]) == 1 else "")


def _sum(connection: sqlite3.Connection, table: str, prefix: str = "") -> str:
    """SQL for a row's checksum: over bytes, because a damaged text may be none."""
    columns = connection.execute(f"PRAGMA main.table_info({table})").fetchall()
    values = (f"CAST({prefix}{name} AS BLOB)" if kind == "TEXT" else f"{prefix}{name}" for _, name, kind, *_ in columns)
    return f"checksum({', '.join(values)})"
