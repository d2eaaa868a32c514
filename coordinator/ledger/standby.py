"""What the fleet falls back on where its newest generalist is damaged or gone: the last one before it that is still sound."""

from __future__ import annotations

from typing import Any

from coordinator.ledger.database import Database
from coordinator.ledger.payloads import Payloads
from coordinator.protocol import rounds

NEWEST = "SELECT number, sha256, size, lost FROM rounds WHERE published IS NOT NULL AND sha256 IS NOT NULL ORDER BY number DESC"


def sound_before(database: Database, payloads: Payloads, number: int) -> dict[str, Any] | None:
    """The round whose generalist came before that of `number` and is still sound; None without one."""
    rows = database.rows("SELECT number, rolled_back_to FROM rounds WHERE rolled_back_to IS NOT NULL")
    again = {row["number"]: row["rolled_back_to"] for row in rows}
    while (number := rounds.generalist_before(number, again)) >= 0:
        row = database.row("SELECT * FROM rounds WHERE number = ?", number)
        if row is not None and payloads.is_sound(row["sha256"]):
            return row
    return None


def nothing_left(database: Database, payloads: Payloads, *, reads: bool = False) -> str | None:
    """What the owner can do where no generalist is left; None where one is.

    The newest is judged by its size; with `reads` by its every byte.
    """
    newest = database.row(NEWEST)
    if newest is None:
        return None
    sha256 = newest["sha256"]
    is_here = payloads.is_sound(sha256) if reads else newest["lost"] is None and payloads.has(sha256, newest["size"])
    if is_here or sound_before(database, payloads, newest["number"]) is not None:
        return None
    return (
        f"no generalist is left, and devices wait for generalist {newest['number']}: put payloads/ back from a backup, or copy "
        f"fleet/generalists/{newest['number']:06d}.safetensors from the home of a device that has it to {payloads.path(sha256)}, "
        "and start again"
    )
