"""A device follows the roster of its fleet's owner, and none that is older than the newest that it has seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.membership import Membership
from comigs_edge.fleet.owners import ROSTER
from coordinator.protocol.messages import decode, encode
from coordinator.protocol.private.cohort import Distrust
from coordinator.protocol.private.messages import Roster, SignedRoster
from coordinator.protocol.private.roster import canonical, check_listed, open_roster

NONE = "none"  # in place of a key: from now on without a roster


def read_key(text: str) -> str:
    """The public key that a person typed, empty for `NONE`; raises `ComigsError`."""
    try:
        return "" if text == NONE else canonical(text.strip())
    except ValueError as error:
        raise ComigsError(
            f"{text[:60]!r} is no key of a roster ({error}); its owner has it from: comigs-coordinator roster new-key FILE"
        ) from error


def check_roster(folder: FleetFolder, member: Membership, signed: SignedRoster | None, public_keys: Iterable[str]) -> None:
    """Raises `Distrust` unless the roster that is shown is the owner's, none before was newer, and it has all of these devices.

    One that is newer is on the disk when this returns. A device that was told no key of an owner follows no roster.
    """
    if not member.roster_key:
        return
    if signed is None:
        raise Distrust(f"its coordinator shows no roster, and the owner's key {member.roster_key} must have signed one")
    roster = open_roster(signed, member.roster_key)
    if roster.fleet != member.fleet:
        raise Distrust(f"its roster is of the fleet {roster.fleet[:60]} and not of {member.fleet}")
    shown, seen = _point(roster), _seen(folder, member)
    for number, sha256 in seen:
        if number > roster.serial or (number == roster.serial and sha256 != shown[1]):
            raise Distrust(f"its roster is {roster.serial}, and this device has seen {number}, which is not older")
    if seen != [shown, shown]:
        folder.owners.say(member.fleet, member.pin, member.roster_key, shown)
        files.write_atomic(folder.root / ROSTER, encode(msgspec.structs.replace(signed, key=member.roster_key)))
    check_listed(roster, public_keys)


def _point(roster: Roster) -> tuple[int, str]:
    return roster.serial, hashlib.sha256(encode(roster)).hexdigest()


def _seen(folder: FleetFolder, member: Membership) -> list[tuple[int, str]]:
    """The newest roster of this key that was seen, as two files say; where one of them is lost, the other says it."""
    owned = folder.owners.find(member.fleet)
    said = [owned.newest[member.roster_key]] if owned is not None and member.roster_key in owned.newest else []
    roster = _kept(
        folder, member.roster_key, "its number is known" if said else "nobody knows its number, so an older one may come"
    )
    return said + ([_point(roster)] if roster is not None and roster.fleet == member.fleet else [])


def _kept(folder: FleetFolder, key: str, what: str) -> Roster | None:
    """The roster on the disk; None where there is none, or another key's. A damaged one is set aside, and the user hears so."""
    path, signed = folder.root / ROSTER, None
    try:
        signed = decode(path.read_bytes(), SignedRoster)
        return open_roster(signed, key)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, Distrust) as error:
        if signed is None or signed.key == key:
            folder.set_aside(path, f"{path}, the newest roster that was seen, is damaged ({error}); {what}")
        return None
