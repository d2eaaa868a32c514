"""What stands in the ledger's rows: each value against its type, each row against its checksum, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Literal

import msgspec

from coordinator.ledger import checksums
from coordinator.ledger.checksums import Row
from coordinator.ledger.database import Database
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import (
    NAME_PATTERN,
    Count,
    Generalist,
    Number,
    Sha256,
    SignedManifest,
    SignedRestoration,
    UpdateId,
    decode,
)  # fmt: skip
from coordinator.protocol.private.messages import SignedRoster

Time = Annotated[float, msgspec.Meta(ge=-1e11, le=1e11)]  # seconds since 1970, by a clock that may be wrong
DeviceId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$", max_length=32)]
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, max_length=64)]
Key = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{43}$")]
Signed = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]+$")]


class _Fact(msgspec.Struct):
    name: Literal["fleet", "generalist", "address", "restored", "backup", "settings", "port", "roster"]
    value: str


class _Invitation(msgspec.Struct):
    code: Sha256
    name: Name | None
    made: Time
    expires: Time
    device: DeviceId | None


class _Device(msgspec.Struct):
    id: DeviceId
    name: Name
    public_key: Key
    joined: Time
    last_contact: Time
    revoked: Time | None
    version: Annotated[str, msgspec.Meta(max_length=32)]
    validation_loss: float | None
    bytes_in: Count
    bytes_out: Count
    joined_at: Number
    former: DeviceId | None


class _Round(msgspec.Struct):
    number: Count
    opened: Time
    closed: Time | None
    published: Time | None
    sha256: Sha256 | None
    size: Count | None
    devices: Count | None
    manifest: Signed | None
    signature: Signed | None
    rolled_back_to: Number | None
    change_sha256: Sha256 | None
    change_size: Count | None
    lost: str | None


class _Update(msgspec.Struct):
    device: DeviceId
    round: Count
    sha256: Sha256
    trained_from: Number
    weight: Count
    tokens: Count
    size: Count
    format: Literal["float32", "float16", "int8"]
    averaging: Literal["separate", "freeze-a", "alternate"]
    validation_loss: float | None
    received: Time
    update_id: UpdateId | None
    norm: float | None
    counted_weight: Count | None
    distance: float | None
    lost: str | None


class _Refusal(msgspec.Struct):
    device: DeviceId
    round: Count
    loss_before: float | None
    loss_after: float | None


SHAPES: dict[str, type[msgspec.Struct]] = {
    "facts": _Fact, "invitations": _Invitation, "devices": _Device, "rounds": _Round, "updates": _Update, "refusals": _Refusal,
}  # fmt: skip
WORDS = {
    "facts": "the fact {}", "invitations": "the invitation {:.12}", "devices": "the device {name}", "rounds": "round {}",
    "updates": "the update of {name} in round {round}", "refusals": "the refusal of {name} in round {round}",
}  # fmt: skip
IN_MANIFEST = ("sha256", "size", "devices", "rolled_back_to", "change_sha256", "change_size")  # columns of a round
BROKEN = "devices that know no newer generalist cannot follow over it; only a backup brings it back"
STATES = {"changed": "is not what was written", "gone": "is gone", "unknown": "has no checksum"}


def damaged(database: Database, signing_key: str, tables: Iterable[str] = SHAPES) -> dict[Row, str]:
    """The rows that are not what was written, or (in these tables) cannot be: each with a sentence.

    Raises `CoordinatorError` where the ledger is another key's: what it signed anew no device would take.
    """
    found = {row: STATES[row.state] for row in database.changed()}
    known = {(row.table, row.key) for row in found}
    _check_key(database, signing_key, {key for table, key in known if table == "rounds"})
    for table in tables:
        for values in database.each(checksums.keyed(table)):
            key = values.pop("row_key")
            if (table, key) not in known and (flaw := flaw_of(table, values, signing_key)):
                found[Row(table, key, "changed")] = f"cannot be used ({flaw})"
    return {row: f"the ledger's row of {_words(database, row)} {flaw}" for row, flaw in found.items()}


def _check_key(database: Database, signing_key: str, damaged: Collection[str]) -> None:
    query, count = "SELECT number, manifest, signature FROM rounds WHERE manifest IS NOT NULL AND signature IS NOT NULL", 0
    for row in database.each(query):  # usually the first one tells
        if str(row["number"]) not in damaged:
            count += 1
            if _is_signed(SignedManifest(manifest=row["manifest"], signature=row["signature"]), signing_key):
                return
    if count:
        raise CoordinatorError(
            f"keys/signing.key did not sign one of the {count} generalists in {database.path}: it is another "
            "coordinator's, or damaged; restore both from one backup"
        )


def _is_signed(manifest: SignedManifest, signing_key: str) -> bool:
    try:
        keys.open_manifest(manifest, signing_key)
    except ValueError:
        return False
    return True


def flaw_of(table: str, values: dict[str, object], signing_key: str) -> str | None:
    """Why a row cannot be what a coordinator has written; None if it can."""
    try:
        row = msgspec.convert(values, SHAPES[table])
        if isinstance(row, _Device) and keys.device_id(row.public_key) != row.id:
            return "its key is another device's"
        if isinstance(row, _Round) and row.published is not None and (row.manifest or not row.lost):
            return _difference(row, signing_key)
        if isinstance(row, _Fact) and row.name == "generalist":
            decode(row.value.encode(), Generalist)
        if isinstance(row, _Fact) and row.name == "roster":
            decode(row.value.encode(), SignedRoster)
        if isinstance(row, _Fact) and row.name == "restored":
            keys.open_restoration(decode(row.value.encode(), SignedRestoration), signing_key)
    except ValueError as error:  # msgspec's own are such too
        return str(error)
    return None


def _difference(row: _Round, signing_key: str) -> str | None:
    """How a published round is not what its manifest says."""
    link = keys.open_manifest(SignedManifest(manifest=row.manifest or "", signature=row.signature or ""), signing_key)
    if link.round == row.number and all(getattr(link, name) == getattr(row, name) for name in IN_MANIFEST):
        return None
    return "its manifest says something else"


def _words(database: Database, row: Row) -> str:
    identity, _, number = row.key.partition(" ")
    name = database.value("SELECT name FROM devices WHERE id = ?", identity) or identity[:12]
    return WORDS[row.table].format(row.key, name=name, round=number)
