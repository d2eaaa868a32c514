"""The roster that the fleet's owner signed, where there is one: a fact of the ledger, so a backup has it."""

from __future__ import annotations

from collections.abc import Iterable
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
NONE = "none"  # in place of one: from now on devices are shown none


def find_roster(fleet: Fleet) -> tuple[SignedRoster, Roster] | None:
    """The roster in force; None without one."""
    return None if (text := fleet.database.fact(FACT)) is None else _read(text)


@lru_cache(maxsize=1)
def _read(text: str) -> tuple[SignedRoster, Roster]:
    return read_roster(text.encode(errors="replace"), "this file")


def is_listed(fleet: Fleet, device: Device) -> bool:
    """Whether rounds take this device: all, where the fleet is not private or has no roster."""
    found = find_roster(fleet) if fleet.config.rounds.private else None
    return found is None or _has(found[1], device)


def _has(roster: Roster, device: Device) -> bool:
    return keys.to_text(device.public_key.public_bytes_raw()) in roster.devices


def listed(fleet: Fleet, devices: Iterable[Device]) -> list[Device]:
    """Those of the devices that rounds take."""
    return [each for each in devices if is_listed(fleet, each)]


def use_roster(fleet: Fleet, text: str) -> dict[str, Any]:
    """From now on devices are shown this one, or `NONE`; raises `CoordinatorError` for one that they would not follow."""
    if text == NONE:
        fleet.database.run("DELETE FROM facts WHERE name = ?", FACT)
        return show_roster(fleet)
    signed, roster = _read(text)
    if roster.fleet != fleet.id:
        raise CoordinatorError(
            f"this roster is of the fleet {roster.fleet}, and this one is {fleet.id}; sign one: --fleet {fleet.id}"
        )
    before = find_roster(fleet)
    if before is not None and before[0].key == signed.key and roster != before[1] and roster.serial <= before[1].serial:
        raise CoordinatorError(
            f"this roster is {roster.serial}, and the one in force, {before[1].serial}, is not older, so no device follows it; "
            f"sign it again: comigs-coordinator roster sign, with --number {before[1].serial + 1} where the roster before is lost"
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
        "unlisted": sorted(each.name for each in members if not _has(roster, each)),
    }  # fmt: skip
