"""The note that tells devices that the coordinator goes on from an older copy of its folder: it is no fork."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.ledger.chain import Chain
from coordinator.ledger.database import Database
from coordinator.protocol import keys
from coordinator.protocol.messages import Restoration, SignedRestoration, decode, encode

BACKUP = "backup"  # fact in the ledger of a backup
RESTORE = "restore a backup: mkdir DIR && tar -xf BACKUP -C DIR && comigs-coordinator serve --data DIR"
log = logging.getLogger("comigs-coordinator")


def last_restoration(database: Database) -> SignedRestoration | None:
    """The last note, which every device is shown."""
    text = database.fact("restored")
    return None if text is None else decode(text.encode(), SignedRestoration)


def sign_note(database: Database, chain: Chain, key: Ed25519PrivateKey, fleet: str, clock: Callable[[], float]) -> Restoration:
    """Signs a note and keeps it: what a device brought since the newest generalist, and does not count, it brings again."""
    newest, before = chain.newest, last_restoration(database)
    last = 0 if before is None else keys.open_restoration(before, chain.signing_key).number
    note = Restoration(
        fleet=fleet, number=max(last + 1, int(1000 * clock())),  # the same copy may be restored twice: counting is not enough
        round=chain.newest_number, manifest_hash="" if newest is None else keys.chain_hash(newest),
    )  # fmt: skip
    database.set_fact("restored", encode(keys.sign_restoration(key, note)).decode())
    return note


def restore(database: Database, chain: Chain, key: Ed25519PrivateKey, fleet: str, clock: Callable[[], float]) -> Restoration:
    """Signs a note. Invitations that the copy shows as unused may have been used: they end."""
    with database.transaction():
        note = sign_note(database, chain, key, fleet, clock)
        database.run("DELETE FROM facts WHERE name = ?", BACKUP)
        database.run("DELETE FROM invitations WHERE device IS NULL")
    log.warning("restored from a backup: the fleet goes on from generalist %d", note.round)
    log.warning("what happened to devices since the backup is not known; look at them: comigs-coordinator devices")
    return note
