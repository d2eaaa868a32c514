"""The roster: the devices of a fleet, signed by its owner with a key that the coordinator does not have.

A device that was told the owner's public key masks only with devices that stand in it, so a coordinator can make up none.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import decode
from coordinator.protocol.private.cohort import Distrust, is_signed, read_message, sign
from coordinator.protocol.private.messages import Roster, SignedRoster

MOST_LISTED = 4096  # devices of a roster


def sign_roster(key: Ed25519PrivateKey, roster: Roster) -> SignedRoster:
    """The roster's bytes and their signature."""
    data, signature = sign(key, roster)
    return SignedRoster(roster=data, signature=signature, key=keys.public_text(key))


def open_roster(signed: SignedRoster, roster_key: str) -> Roster:
    """The roster, if the owner of this public key signed it; raises `Distrust`."""
    data, roster = read_message(signed.roster, Roster)
    if not is_signed(roster_key, Roster, data, signed.signature):
        raise Distrust(f"its roster is not signed with the owner's key {roster_key}")
    return roster


def read_roster(data: bytes, source: object) -> tuple[SignedRoster, Roster]:
    """A roster's file, signed with the key that it names; raises `CoordinatorError`, which names the source."""
    try:
        signed = decode(data, SignedRoster)
        return signed, open_roster(signed, signed.key)
    except (msgspec.DecodeError, Distrust) as error:
        raise CoordinatorError(f"{source} is no roster ({error}); sign one with: comigs-coordinator roster sign") from error


def check_listed(roster: Roster, public_keys: Iterable[str]) -> None:
    """Raises `Distrust` unless all of these keys stand in it."""
    if strangers := [each for each in public_keys if canonical(each) not in roster.devices]:
        raise Distrust(f"the owner's roster {roster.serial} does not have the device with the key {strangers[0]}")


def canonical(public_key: str) -> str:
    """A device's public key, written as a roster writes it; raises `ValueError` for what is none."""
    return keys.to_text(keys.public_key(public_key).public_bytes_raw())
