"""What a disk lost: payloads that are gone, or not what was written. They are named and left out, and the fleet goes on.

An update does not count. A generalist is made again from the one before and the change; where that cannot be, the next one is
made from the one before, which is published again if it is the newest.
"""

from __future__ import annotations

import logging

from coordinator.ledger import making
from coordinator.ledger.chain import Chain
from coordinator.ledger.database import Database
from coordinator.ledger.members import read_generalist
from coordinator.ledger.payloads import Payloads
from coordinator.protocol.messages import Generalist

UNPUBLISHED = "round IN (SELECT number FROM rounds WHERE published IS NULL)"
WHY = "damaged or gone"  # in the ledger
log = logging.getLogger("comigs-coordinator.damage")


def needed(database: Database) -> set[str]:
    """The payloads that the next generalist needs, or that devices fetch now."""
    rows = database.rows(
        "SELECT sha256 FROM rounds WHERE lost IS NULL AND number = (SELECT max(number) FROM rounds WHERE published IS NOT NULL) "
        f"UNION SELECT sha256 FROM updates WHERE lost IS NULL AND {UNPUBLISHED}"
    )
    return {row["sha256"] for row in rows}


def make_again(database: Database, payloads: Payloads, damaged: set[str]) -> set[str]:
    """Makes those of the damaged payloads again that are generalists whose predecessor and change are sound; returns them."""
    rows = database.rows(
        "SELECT rounds.number, rounds.sha256, rounds.change_sha256, before.sha256 AS before FROM rounds "
        "JOIN rounds AS before ON before.number = rounds.number - 1 WHERE rounds.change_sha256 IS NOT NULL ORDER BY rounds.number"
    )
    generalist, made = read_generalist(database), set[str]()
    for row in rows:
        if generalist is None or row["sha256"] not in damaged - made or row["before"] is None:  # a round may have changed nothing
            continue
        if making.make_again(row["sha256"], row["before"], row["change_sha256"], generalist, payloads):
            log.warning("generalist %d was damaged or gone; it was made again from the one before", row["number"])
            database.run("UPDATE rounds SET lost = NULL WHERE sha256 = ?", row["sha256"])
            made.add(row["sha256"])
    return made


def lose(database: Database, payloads: Payloads, damaged: set[str]) -> bool:
    """Enters and names payloads that are lost for good, and deletes what is left of them: so they can come again.

    Returns whether one is an update, which its device takes for counted.
    """
    updates = 0
    for sha256 in sorted(damaged - make_again(database, payloads, damaged)):
        for sentence in describe(database, sha256):
            log.warning("lost, and left out: %s", sentence)
        with database.transaction():
            # Without its id it is not among those that count, in what its device is told.
            updates += database.run(
                f"UPDATE updates SET lost = ?, update_id = NULL WHERE sha256 = ? AND lost IS NULL AND {UNPUBLISHED}", WHY, sha256
            )
            database.run("UPDATE rounds SET lost = ? WHERE sha256 = ?", WHY, sha256)
            reopen_first(database)
        payloads.drop(sha256)
    return updates > 0


def describe(database: Database, sha256: str) -> list[str]:
    """What a payload is that is not sound, in words."""
    return [f"{words} is damaged or gone" for words in _words(database, f"sha256 = ? AND {UNPUBLISHED}", "sha256 = ?", sha256)]


def lost(database: Database, last: int = 10) -> list[str]:
    """What was lost, in words, the last of it first."""
    return _words(database, "lost IS NOT NULL", "lost IS NOT NULL")[:last]


def _words(database: Database, updates: str, generalists: str, *values: str) -> list[str]:
    update_rows = database.rows(
        "SELECT round, coalesce(name, device) AS name FROM updates LEFT JOIN devices ON id = device "
        f"WHERE {updates} ORDER BY round DESC", *values,
    )  # fmt: skip
    rows = database.rows(f"SELECT number FROM rounds WHERE {generalists} ORDER BY number DESC", *values)
    return [f"the update of {row['name']} in round {row['round']}" for row in update_rows] + [
        f"generalist {row['number']}" for row in rows
    ]


def mend(database: Database, payloads: Payloads, chain: Chain, generalist: Generalist | None) -> bool:
    """At a start: loses what is damaged, finds again what was put back, and turns back where the newest generalist is lost.

    Returns what `lose` does.
    """
    for row in database.rows("SELECT DISTINCT sha256 FROM rounds WHERE lost IS NOT NULL"):
        if payloads.is_sound(row["sha256"]):
            database.run("UPDATE rounds SET lost = NULL WHERE sha256 = ?", row["sha256"])
    updates = lose(database, payloads, payloads.unsound(needed(database)))
    newest = chain.newest_number
    is_lost = database.value("SELECT lost FROM rounds WHERE number = ?", newest) is not None
    waits = database.value("SELECT 1 FROM rounds WHERE closed IS NOT NULL AND published IS NULL")
    if is_lost and waits is None and generalist is not None:
        chain.roll_back(newest, generalist)
    return updates


def reopen_first(database: Database) -> None:
    """Round 0 is its one update: without it, it waits for another."""
    is_published = "SELECT 1 FROM rounds WHERE published IS NOT NULL"
    if database.value(f"{is_published} UNION SELECT 1 FROM updates WHERE round = 0 AND lost IS NULL") is None:
        database.run("DELETE FROM rounds WHERE number = 1")
        database.run("UPDATE rounds SET closed = NULL WHERE number = 0")
