"""The roster that the fleet's owner signed, where there is one: a fact of the ledger, so a backup has it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from coordinator.ledger.fleet import Fleet
from coordinator.ledger.members import Device
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import encode
from coordinator.protocol.private.messages import Roster, SignedRoster
from coordinator.protocol.private.roster import read_roster

FACT = "roster"


def find_roster(fleet: Fleet) -> tuple[SignedRoster, Roster] | None:
    """The roster in force; None without one."""
    return None if (text := fleet.database.fact(FACT)) is None else _read(text)


@lru_cache(maxsize=1)
def _read(text: str) -> tuple[SignedRoster, Roster]:
    return read_roster(text.encode(errors="replace"), "this file")


def is_listed(fleet: Fleet, device: Device) -> bool:
    """Whether private windows take this device: all, where there is no roster."""
    found = find_roster(fleet)
    return found is None or keys.to_text(device.public_key.public_bytes_raw()) in found[1].devices


def use_roster(fleet: Fleet, text: str) -> dict[str, Any]:
    """From now on devices are shown this one; raises `CoordinatorError` for one that they would not follow."""
    signed, roster = _read(text)
    if roster.fleet != fleet.id:
        raise CoordinatorError(
            f"this roster is of the fleet {roster.fleet}, and this one is {fleet.id}; sign one: --fleet {fleet.id}"
        )
    before = find_roster(fleet)
    if before is not None and before[0].key == signed.key and roster != before[1] and roster.serial <= before[1].serial:
        raise CoordinatorError(
            f"this roster is {roster.serial}, and the one in force, {before[1].serial}, is not older, so no device follows it; "
            "sign it again: comigs-coordinator roster sign"
        )
    fleet.database.set_fact(FACT, encode(signed).decode())
    return show_roster(fleet)


def show_roster(fleet: Fleet) -> dict[str, Any]:
    """The roster in force, its devices' names, and the names of members that are not in it."""
    if (found := find_roster(fleet)) is None:
        return {"roster": None}
    signed, roster = found
    members = [each for each in fleet.members.devices.values() if each.revoked is None]
    return {
        "roster": msgspec.to_builtins(signed), "key": signed.key, "serial": roster.serial,
        "devices": sorted(roster.devices.values()),
        "unlisted": sorted(each.name for each in members if not is_listed(fleet, each)),
    }  # fmt: skip
