"""Reads everything that a coordinator keeps, and says what is sound, damaged or lost; on request mends what can be mended."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

from coordinator.ledger import damage, rows, salvage, standby
from coordinator.ledger.chain import KEPT_GENERALISTS
from coordinator.ledger.database import DamagedLedger, Database
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.folder import Folder
from coordinator.ledger.members import read_generalist
from coordinator.ledger.payloads import Payloads
from coordinator.protocol import compress, keys, wire
from coordinator.protocol.messages import SignedManifest

GAP = "none"  # in place of the hash of a manifest that cannot be read
Found = dict[str, list[str]]  # "damaged", "lost", "repaired", "needed" (what only the owner can bring back) -> sentences


def check(database: Database, payloads: Payloads, signing_key: str) -> Found:
    """Of a ledger that can be opened: its pages and rows; where those are sound, the chain, payloads and unfinished uploads."""
    return _check(database, payloads, signing_key, _ledger(database, signing_key))


def _check(database: Database, payloads: Payloads, signing_key: str, flaws: list[str]) -> Found:
    """`flaws` are the ledger's own."""
    if flaws:
        return _found(damaged=flaws, lost=damage.lost(database))  # what else is read rests on it
    found = list(_payloads(database, payloads))
    found += [f"the change to generalist {row['number']} is damaged" for row in _changes(database, payloads)]
    found += [f"the unfinished upload {name} {flaw}" for name, flaw in _uploads(database, payloads).items()]
    needed = standby.nothing_left(database, payloads, reads=True)
    return _found(damaged=found, lost=damage.lost(database) + _breaks(database, signing_key), needed=[needed] if needed else [])


def check_folder(root: Path, repair: bool) -> Found:
    """Of a coordinator that does not run; raises `CoordinatorError` for what only a backup brings back."""
    with Folder.open(root) as folder:
        key, payloads = folder.signing_key, Payloads(root)
        public = keys.public_text(key)
        try:
            with closing(Database(folder.ledger)) as database:
                flaws, has_gaps = _ledger(database, public), False
                found = _check(database, payloads, public, flaws)
        except (DamagedLedger, sqlite3.DatabaseError) as error:
            reason = error.reason if isinstance(error, DamagedLedger) else f"{folder.ledger} is damaged ({error})"
            flaws, has_gaps = [reason], True
            found = _found(damaged=flaws)
        repaired: list[str] = []
        if flaws:
            repaired = salvage.rebuild(folder.ledger, payloads, key, time.time(), replace=repair, has_gaps=has_gaps)
        if not repair or not found["damaged"]:
            return found
        with closing(Database(folder.ledger)) as database:
            payloads_before = _payloads(database, payloads)
        with folder.fleet(time.time) as fleet:
            repaired += _repair(fleet, payloads_before)
            return {**check(fleet.database, payloads, public), "repaired": repaired}


def _repair(fleet: Fleet, damaged: dict[str, str]) -> list[str]:
    """Makes again or leaves out what is damaged beside the ledger; returns what was done.

    `damaged` are the payloads before the start, which has mended some: sentence -> SHA-256.
    """
    database, payloads = fleet.database, fleet.payloads
    changes, uploads = _changes(database, payloads), _uploads(database, payloads)
    fleet.lose(payloads.unsound(_old(database)))
    for row in changes:
        payloads.drop(row["sha256"])
    for name in uploads:
        (payloads.uploads / name).unlink(missing_ok=True)
    return [
        *(f"{what}: it was {'made again' if payloads.is_sound(sha256) else 'left out'}" for what, sha256 in damaged.items()),
        *(f"the change to generalist {row['number']} is damaged: it was left out" for row in changes),
        *(f"the unfinished upload {name} {flaw}: it was deleted" for name, flaw in uploads.items()),
    ]


def _found(**kinds: list[str]) -> Found:
    return {"damaged": [], "lost": [], "repaired": [], "needed": [], **kinds}


def _payloads(database: Database, payloads: Payloads) -> dict[str, str]:
    """The payloads that are needed or kept, and not sound: sentence -> SHA-256."""
    unsound = payloads.unsound(damage.needed(database) | _old(database))
    return {sentence: sha256 for sha256 in sorted(unsound) for sentence in damage.describe(database, sha256)}


def _ledger(database: Database, signing_key: str) -> list[str]:
    """What is damaged in the ledger itself."""
    pages = [row["integrity_check"] for row in database.rows("PRAGMA integrity_check(10)")]
    return [f"ledger: {page}" for page in pages if page != "ok"] + list(rows.damaged(database, signing_key).values())


def _breaks(database: Database, signing_key: str) -> list[str]:
    """Where the chain of manifests is broken."""
    found: list[str] = []
    number, previous = 0, ""
    for row in database.each("SELECT number, manifest, signature FROM rounds WHERE published IS NOT NULL ORDER BY number"):
        signed = SignedManifest(manifest=row["manifest"] or "", signature=row["signature"] or "")
        try:
            named, following = keys.open_manifest(signed, signing_key).previous, keys.chain_hash(signed)
        except ValueError:
            named = following = GAP
        if row["number"] != number or named == GAP or previous not in (GAP, named):
            found.append(f"the link of generalist {number} in the chain; {rows.BROKEN}")
        number, previous = row["number"] + 1, following
    return found


def _kept(database: Database, column: str) -> list[dict[str, Any]]:
    """The rounds whose payloads are kept, with this one."""
    query = f"SELECT number, lost, {column} AS sha256 FROM rounds WHERE published IS NOT NULL AND {column} IS NOT NULL"
    return database.rows(f"{query} ORDER BY number DESC LIMIT ?", KEPT_GENERALISTS)


def _old(database: Database) -> set[str]:
    """Generalists that are kept."""
    return {row["sha256"] for row in _kept(database, "sha256") if row["lost"] is None}


def _changes(database: Database, payloads: Payloads) -> list[dict[str, Any]]:
    """Kept changes that are not sound; one that is gone is not missed, devices fetch the generalist."""
    rows = _kept(database, "change_sha256")
    return [row for row in rows if payloads.path(row["sha256"]).exists() and not payloads.is_sound(row["sha256"])]


def _uploads(database: Database, payloads: Payloads) -> dict[str, str]:
    """Unfinished uploads that nobody will finish: file name -> why."""
    members = {row["id"] for row in database.rows("SELECT id FROM devices WHERE revoked IS NULL")}
    limit, found = _limit(database), {}
    for path in sorted(payloads.uploads.iterdir()):
        device, _, sha256 = path.name.partition("-")
        if device not in members:
            found[path.name] = "is of no member"
        elif payloads.path(sha256).exists():
            found[path.name] = "is here as a whole already"
        elif path.stat().st_size > limit:
            found[path.name] = f"has {path.stat().st_size:,} bytes, and the largest update {limit:,}"
    return found


def _limit(database: Database) -> int:
    """Bytes of the largest update in whatever format."""
    generalist = read_generalist(database)
    shapes = {} if generalist is None else generalist.tensors
    return max(wire.encoded_size(compress.table(shapes, each)) for each in get_args(compress.UpdateFormat))
