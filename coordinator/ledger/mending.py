"""Mends the ledger's rows that a disk changed, from what else is known of them; what is known nowhere else is left out.

A manifest and its round's row say the same: either is written anew from the other, to the bit, and the next manifest confirms it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.ledger import checksums, damage, rows
from coordinator.ledger.checksums import Row
from coordinator.ledger.database import Database
from coordinator.ledger.members import read_generalist
from coordinator.ledger.payloads import Payloads
from coordinator.ledger.restoration import BACKUP, RESTORE
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import Manifest, SignedManifest

PRECIOUS = ("fleet", "generalist")  # facts that stand nowhere else


class Ledger(NamedTuple):
    """What mending works on."""

    database: Database
    payloads: Payloads
    key: Ed25519PrivateKey
    now: float

    def values(self, row: Row) -> dict[str, Any]:
        """The row as it is."""
        query = f"SELECT * FROM {row.table} WHERE {checksums.where(row.table)}"
        return self.database.row(query, row.key) or {}

    def change(self, row: Row, **values: Any) -> None:
        """Sets columns of the row."""
        names = ", ".join(f"{name} = ?" for name in values)
        self.database.run(f"UPDATE {row.table} SET {names} WHERE {checksums.where(row.table)}", *values.values(), row.key)

    def delete(self, row: Row) -> None:
        """Deletes the row."""
        self.database.run(f"DELETE FROM {row.table} WHERE {checksums.where(row.table)}", row.key)

    def is_possible(self, row: Row) -> bool:
        """Whether a coordinator can have written the row as it is."""
        return rows.flaw_of(row.table, self.values(row), keys.public_text(self.key)) is None


def mend_rows(database: Database, payloads: Payloads, key: Ed25519PrivateKey, now: float) -> list[str]:
    """Mends or leaves out every row that is not what was written; returns what was done.

    Raises `CoordinatorError`, and changes nothing, where only a backup helps.
    """
    ledger, done = Ledger(database, payloads, key, now), []
    with database.transaction():
        for row, sentence in rows.damaged(database, keys.public_text(key)).items():
            if row.state == "unknown" and ledger.is_possible(row):
                how = "it is taken as it is"
            elif row.table == "facts" and row.key in PRECIOUS:
                raise CoordinatorError(f"{sentence}, and it stands nowhere else; {RESTORE}")
            else:
                how = MENDERS[row.table](ledger, row)
            left = ledger.values(row)
            database.accept(row if left else Row(row.table, row.key, "gone"))
            done.append(f"{sentence}: {how}")
        _end_with_an_open_round(ledger)
        damage.reopen_first(database)
    return done


def _mend_fact(ledger: Ledger, row: Row) -> str:
    ledger.delete(row)
    if row.key in ("restored", BACKUP):
        ledger.database.set_fact(BACKUP, str(ledger.now))
        return "the next start tells the devices anew that the coordinator was restored"
    if row.key == "roster":
        return "it was left out; bring the owner's again: comigs-coordinator roster use FILE"
    return "it was left out"


def _leave_out(ledger: Ledger, row: Row) -> str:
    ledger.delete(row)
    return "it was left out"


def _mend_device(ledger: Ledger, row: Row) -> str:
    device = ledger.values(row)
    if not device:
        return "invite the device again"
    if ledger.is_possible(row):
        return "it is kept, as it is"
    ledger.delete(row)
    return "it was left out; invite the device again"


def _mend_update(ledger: Ledger, row: Row) -> str:
    update = ledger.values(row)
    query = "SELECT published FROM rounds WHERE number = ?"
    if update and ledger.is_possible(row) and ledger.database.value(query, update["round"]) is not None:
        return "it is kept, as it is: it is in a generalist already"
    ledger.delete(row)
    ledger.database.set_fact(BACKUP, str(ledger.now))  # so that its device does not take it for counted
    return "it was left out; a device that still has it brings it again"


def _mend_round(ledger: Ledger, row: Row) -> str:
    found = ledger.values(row)
    if not found:
        last = ledger.database.value("SELECT max(number) FROM rounds")
        is_between = last is not None and row.key.isdecimal() and int(row.key) < last
        return rows.BROKEN if is_between else "the rounds go on from those that are here"
    ledger.change(row, **_times(ledger, found))
    if found["manifest"] is None and found["sha256"] is None:
        return "its times were corrected"
    link = _open(ledger, found)
    if link is not None and link.round == found["number"]:
        ledger.change(row, **{name: getattr(link, name) for name in rows.IN_MANIFEST})
        return "it was written anew from its manifest"
    if (signed := _sign_again(ledger, found)) is not None:
        ledger.change(row, manifest=signed.manifest, signature=signed.signature)
        return "its manifest was signed anew, with the same bits"
    ledger.change(row, manifest=None, signature=None, lost=damage.WHY, **dict.fromkeys(rows.IN_MANIFEST))
    return f"it is lost; {rows.BROKEN}"


MENDERS: dict[str, Callable[[Ledger, Row], str]] = {
    "facts": _mend_fact, "invitations": _leave_out, "devices": _mend_device, "rounds": _mend_round, "updates": _mend_update,
    "refusals": _leave_out,
}  # fmt: skip


def _times(ledger: Ledger, found: dict[str, Any]) -> dict[str, float | None]:
    """The times of a round's row; another of the row stands in for one that cannot be."""
    names = {"opened", "closed", "published"}
    known = {name: at for name in names if (at := found[name]) is not None and 0 <= at <= ledger.now + 1}
    wanted = names if found["manifest"] or found["sha256"] else names - {"published"}
    if found["number"] == ledger.database.value("SELECT max(number) FROM rounds") and "published" not in wanted:
        wanted = {"opened"}
    other = next(iter(known.values()), ledger.now)
    return {name: known.get(name, other) if name in wanted else None for name in names}


def _open(ledger: Ledger, found: dict[str, Any]) -> Manifest | None:
    try:
        signed = SignedManifest(manifest=found.get("manifest") or "", signature=found.get("signature") or "")
        return keys.open_manifest(signed, keys.public_text(ledger.key))
    except ValueError:
        return None


def _sign_again(ledger: Ledger, found: dict[str, Any]) -> SignedManifest | None:
    """The manifest that a round's row speaks of, if the next one (or, behind the last, its payload) confirms it."""
    before, after = (
        ledger.database.row("SELECT number, manifest, signature FROM rounds WHERE number = ?", found["number"] + step) or {}
        for step in (-1, 1)
    )
    generalist = read_generalist(ledger.database)
    if generalist is None or (found["number"] > 0 and _open(ledger, before) is None):
        return None
    previous = SignedManifest(manifest=before["manifest"], signature=before["signature"]) if before else None
    fleet = str(ledger.database.fact("fleet"))
    try:
        manifest = keys.next_manifest(
            previous, fleet=fleet, base_sha256=generalist.base_sha256, number=found["number"],
            **{name: found[name] for name in rows.IN_MANIFEST},
        )  # fmt: skip
        signed = keys.sign_manifest(ledger.key, manifest)
        keys.open_manifest(signed, keys.public_text(ledger.key))  # its values can be a manifest's
    except (TypeError, ValueError):
        return None
    link = _open(ledger, after)
    confirmed = link.previous == keys.chain_hash(signed) if link else ledger.payloads.is_sound(manifest.sha256)
    return signed if confirmed else None


def _end_with_an_open_round(ledger: Ledger) -> None:
    """The ledger ends with the round after its newest link; what came later is gone, as in a backup of before."""
    database = ledger.database
    last = database.row("SELECT number, closed FROM rounds ORDER BY number DESC")
    newest = database.row("SELECT manifest FROM rounds WHERE published IS NOT NULL ORDER BY number DESC")
    if newest is not None and newest["manifest"] is None:
        number = int(database.value("SELECT coalesce(max(number), -1) + 1 FROM rounds WHERE manifest IS NOT NULL"))
    elif last is None or last["closed"] is not None:
        number = 0 if last is None else last["number"] + 1
    else:
        return
    database.run("DELETE FROM rounds WHERE number >= ?", number)
    for table in ("updates", "refusals"):
        database.run(f"DELETE FROM {table} WHERE round > ?", number)
    database.run("INSERT INTO rounds (number, opened) VALUES (?, ?)", number, ledger.now)
    database.set_fact(BACKUP, str(ledger.now))
