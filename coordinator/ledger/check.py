"""Reads everything that a coordinator keeps, and says what is sound, damaged or lost; on request mends what can be mended."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from coordinator.ledger import damage
from coordinator.ledger.chain import KEPT_GENERALISTS
from coordinator.ledger.database import Database
from coordinator.ledger.folder import Folder
from coordinator.ledger.payloads import Payloads
from coordinator.ledger.restoration import BACKUP
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import SignedManifest

Found = dict[str, list[str]]  # "damaged", "lost", "repaired" -> sentences


def check(database: Database, payloads: Payloads, signing_key: str) -> Found:
    """Of a ledger that can be opened: its pages, the chain of manifests, the payloads."""
    pages = [row["integrity_check"] for row in database.rows("PRAGMA integrity_check(10)")]
    found: Found = {"damaged": [f"ledger: {page}" for page in pages if page != "ok"], "lost": [], "repaired": []}
    found["damaged"] += _chain(database, signing_key)
    for sha256 in sorted(damage.find(database, payloads) | _old(database, payloads)):
        found["damaged"] += damage.describe(database, sha256)
    found["lost"] += damage.lost(database)
    return found


def check_folder(root: Path, repair: bool) -> Found:
    """Of a coordinator that does not run; raises `CoordinatorError` for what only a backup brings back."""
    with Folder.open(root) as folder:
        repaired = []
        try:
            database = Database(folder.ledger)
        except CoordinatorError as error:
            if "is damaged" not in str(error):
                raise
            if not repair:
                return {"damaged": [str(error)], "lost": [], "repaired": []}
            repaired.append(recover(folder.ledger))
            database = Database(folder.ledger)
        with closing(database):
            payloads = Payloads(root)
            found = check(database, payloads, keys.public_text(folder.signing_key))
        if repair and (repaired or found["damaged"]):
            repaired += found["damaged"]
            with folder.fleet(time.time) as fleet:
                fleet.lose(_old(fleet.database, fleet.payloads))
                found = check(fleet.database, fleet.payloads, fleet.chain.signing_key)
        return {**found, "repaired": repaired}


def recover(path: Path) -> str:
    """Copies what can be read of a damaged ledger into a new one; the old one is set aside. Returns a sentence."""
    new, aside = path.with_suffix(".recovered.db"), path.with_suffix(".damaged.db")
    new.unlink(missing_ok=True)
    database, rows = Database(new), 0
    with closing(database), closing(sqlite3.connect(path)) as old:
        old.row_factory = sqlite3.Row
        with database.transaction():
            for table in [row["name"] for row in database.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]:
                rows += _copy_table(old, database, table)
            if database.fact("fleet") is None or database.value("SELECT 1 FROM rounds") is None:
                raise CoordinatorError(f"too little of {path} can be read; restore it from a backup")
            newest = database.row("SELECT * FROM rounds ORDER BY number DESC") or {}
            if newest["closed"] is not None:
                database.run("INSERT INTO rounds (number, opened) VALUES (?, ?)", newest["number"] + 1, newest["closed"])
            database.set_fact(BACKUP, str(time.time()))  # what came last may be missing: as in a backup
    path.replace(aside)
    for left in ("-journal", "-wal", "-shm"):  # of the damaged one
        Path(f"{path}{left}").unlink(missing_ok=True)
    new.replace(path)
    return f"{rows} rows of the ledger were recovered; the damaged one is {aside.name}"


def _copy_table(old: sqlite3.Connection, new: Database, table: str) -> int:
    """Every row that can be read from either end; returns how many."""
    count = 0
    for order in ("ASC", "DESC"):
        with contextlib.suppress(sqlite3.DatabaseError):
            for row in old.execute(f"SELECT * FROM {table} ORDER BY rowid {order}"):
                names = ", ".join(row.keys())
                marks = ", ".join("?" * len(row))
                count += new.run(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", *row)
    return count


def _chain(database: Database, signing_key: str) -> list[str]:
    """The links that do not hold."""
    found, previous = [], ""
    for row in database.rows(
        "SELECT number, sha256, manifest, signature FROM rounds WHERE published IS NOT NULL ORDER BY number"
    ):
        try:
            signed = SignedManifest(manifest=row["manifest"], signature=row["signature"])
            manifest = keys.open_manifest(signed, signing_key)
            if (manifest.round, manifest.previous, manifest.sha256) != (row["number"], previous, row["sha256"]):
                raise ValueError("it does not continue the one before")
            previous = keys.chain_hash(signed)
        except (ValueError, TypeError) as error:
            found.append(f"manifest {row['number']}: {error}")
            previous = ""
    return found


def _old(database: Database, payloads: Payloads) -> set[str]:
    """Kept generalists before the newest that are not sound."""
    rows = database.rows(
        "SELECT sha256, lost FROM rounds WHERE published IS NOT NULL ORDER BY number DESC LIMIT ?", KEPT_GENERALISTS
    )
    return {row["sha256"] for row in rows if row["lost"] is None and not payloads.is_sound(row["sha256"])}
