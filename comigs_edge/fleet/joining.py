"""A device becomes a member of a coordinator's fleet."""

from __future__ import annotations

import secrets

import msgspec

from comigs_edge import __version__
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.client import Remote
from comigs_edge.fleet.folder import FleetFolder, Membership
from comigs_edge.home.folder import Home
from coordinator.protocol import keys
from coordinator.protocol.messages import Generalist, Join

PATIENCE = 30.0  # seconds


def join(home: Home, link: str, name: str | None, generalist: Generalist) -> Membership:
    """Accepts an invitation, with the generalist that this device trains. A membership from before ends."""
    folder = FleetFolder(home)
    try:
        address, code, pin = keys.read_link(link)
    except ValueError as error:
        raise ComigsError(f"{link[:60]!r} is no invitation ({error}); ask for one: comigs-coordinator invite") from error
    if folder.is_member and folder.membership().address != address:
        raise ComigsError(f"this device is in the fleet of {folder.membership().address}; leave it first: comigs-edge leave")
    key = folder.key()
    public = keys.public_text(key)
    remote = Remote(address, pin, key, keys.device_id(public), PATIENCE)
    joined = remote.join(Join(code=code, name=name, public_key=public, generalist=generalist, version=__version__))
    folder.leave()
    member = Membership(
        address=address, pin=pin.hex(), fleet=joined.fleet, device=joined.device, name=joined.name,
        signing_key=joined.signing_key, joined=secrets.token_hex(4), **msgspec.structs.asdict(joined.settings),
    )  # fmt: skip
    folder.save_membership(member)
    return member
