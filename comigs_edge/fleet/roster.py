"""A device follows the roster of its fleet's owner: `fleet/roster.json` of its home is the newest that it has seen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.membership import Membership
from coordinator.protocol.messages import decode, encode
from coordinator.protocol.private.cohort import Distrust
from coordinator.protocol.private.messages import Roster, SignedRoster
from coordinator.protocol.private.roster import canonical, check_listed, open_roster

ROSTER = "roster.json"  # in `fleet/` of the home
NONE = "none"  # in place of a key: from now on without a roster


def read_key(text: str) -> str:
    """The public key that a person typed, empty for `NONE`; raises `ComigsError`."""
    try:
        return "" if text == NONE else canonical(text.strip())
    except ValueError as error:
        raise ComigsError(
            f"{text[:60]!r} is no key of a roster ({error}); its owner has it from: comigs-coordinator roster new-key FILE"
        ) from error


def check_roster(path: Path, member: Membership, signed: SignedRoster | None, public_keys: Iterable[str]) -> None:
    """Raises `Distrust` unless the roster that is shown is the owner's, none before was newer, and it has all of these devices.

    One that is newer is on the disk when this returns. A device that was told no key of an owner follows no roster.
    """
    if not member.roster_key:
        return
    if signed is None:
        raise Distrust(f"its coordinator shows no roster, and the owner's key {member.roster_key} must have signed one")
    roster, before = open_roster(signed, member.roster_key), _newest(path, member)
    if roster.fleet != member.fleet:
        raise Distrust(f"its roster is of the fleet {roster.fleet[:60]} and not of {member.fleet}")
    if before is not None and roster != before and roster.serial <= before.serial:
        raise Distrust(f"its roster is {roster.serial}, and this device has seen {before.serial}, which is not older")
    if roster != before:
        files.write_atomic(path, encode(signed))
    check_listed(roster, public_keys)


def _newest(path: Path, member: Membership) -> Roster | None:
    """The newest that was seen; None where there is none, or the owner has another key now."""
    try:
        return open_roster(decode(path.read_bytes(), SignedRoster), member.roster_key)
    except (OSError, msgspec.DecodeError, Distrust):
        return None
