"""A device becomes a member of a coordinator's fleet."""

from __future__ import annotations

import secrets
from dataclasses import replace
from urllib.parse import urlsplit

import msgspec

from comigs_edge import __version__
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.client import Remote
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.membership import Membership
from comigs_edge.home.folder import Home
from coordinator.protocol import keys
from coordinator.protocol.messages import Generalist, Join

PATIENCE = 30.0  # seconds
PORT = 8443  # of a coordinator, where nobody says another


def join(home: Home, link: str, name: str | None, generalist: Generalist) -> Membership:
    """Accepts an invitation, with the generalist that this device trains.

    Of a fleet in which this device is or was a member, standing and outbox go on: only address, name and settings change.
    """
    folder = FleetFolder(home)
    if not link.strip():
        raise ComigsError("the invitation is empty; ask for one: comigs-coordinator invite")
    try:
        address, code, pin = keys.read_link(link)
    except ValueError as error:
        raise ComigsError(f"{link[:60]!r} is no invitation ({error}); ask for one: comigs-coordinator invite") from error
    present = _present(folder)
    if present is not None and present.address != address and present.pin != pin.hex():
        raise ComigsError(f"this device is in the fleet of {present.address}; leave it first: comigs-edge leave")
    key = folder.key(makes=True)
    public = keys.public_text(key)
    remote = Remote(address, pin, key, keys.device_id(public), PATIENCE)
    joined = remote.join(Join(code=code, name=name, public_key=public, generalist=generalist, version=__version__))
    word = folder.take_up(joined.fleet, joined.signing_key)
    member = Membership(
        address=address, pin=pin.hex(), fleet=joined.fleet, device=joined.device, name=joined.name,
        signing_key=joined.signing_key, joined=word or secrets.token_hex(4), **msgspec.structs.asdict(joined.settings),
    )  # fmt: skip
    folder.rejoin(member, joined.counted)
    folder.save_membership(member)
    return member


def move(home: Home, address: str) -> Membership:
    """The coordinator has another address now; its certificate must be the one that was pinned. Raises `ComigsError`."""
    folder = FleetFolder(home)
    member = replace(folder.membership(), address=_checked(address))
    Remote(member.address, bytes.fromhex(member.pin), folder.key(), member.device, PATIENCE).state()
    folder.save_membership(member)
    return member


def _checked(address: str) -> str:
    """`https://host:port`; without a scheme it is https, without a port the coordinator's."""
    text = address.strip().rstrip("/")
    parts = urlsplit(text if "://" in text else f"https://{text}")
    try:
        port = parts.port or PORT
    except ValueError:
        port = 0
    if (
        parts.scheme != "https"
        or not parts.hostname
        or parts.path
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
        or not port
    ):
        raise ComigsError(f"{address[:60]!r} is no address of a coordinator; it looks like https://192.0.2.7:{PORT}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"https://{host}:{port}"


def _present(folder: FleetFolder) -> Membership | None:
    try:
        return folder.membership() if folder.is_member else None
    except ComigsError:  # it cannot be read: joining again mends that
        return None
