"""A device becomes a member of a coordinator's fleet."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import replace
from urllib.parse import urlsplit

import msgspec

from comigs_edge import __version__
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.client import Remote
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.membership import Membership, said
from comigs_edge.home.folder import Home
from coordinator.protocol import keys
from coordinator.protocol.compress import MASKED
from coordinator.protocol.messages import Generalist, Hello, Join, Joined
from coordinator.protocol.text import printable

PATIENCE = 30.0  # seconds
PORT = 8443  # of a coordinator, where nobody says another


def join(
    home: Home, link: str, name: str | None, generalist: Generalist, roster_key: str | None = None
) -> tuple[Membership, list[str]]:
    """Accepts an invitation, with the generalist that this device trains; the membership, and sentences for its owner.

    Of a fleet in which this device is or was a member, standing and outbox go on: only address, name and settings change.
    `roster_key` is of the owner, who signs the fleet's roster; None: as it was, empty: without one.
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
    former = folder.former("device", pin.hex())
    wish = Join(
        code=code, name=name, public_key=public, generalist=generalist, version=__version__,
        former=None if former == keys.device_id(public) else former,
    )  # fmt: skip
    joined = remote.join(wish, lambda hello: _check(folder, pin.hex(), hello, roster_key))
    _check(folder, pin.hex(), joined, roster_key)  # earlier coordinators say too little beforehand
    member = accept(folder, joined, address, pin.hex(), former, roster_key)
    if name is not None and member.name != name:
        folder.notes.append(
            f"this device is known there as {printable(member.name)} and keeps that name, {printable(name)} is not used"
        )
    return member, folder.notes


def accept(
    folder: FleetFolder, joined: Joined, address: str, pin: str, former: str | None, roster_key: str | None = None
) -> Membership:
    """Writes the membership that a coordinator has granted; `former` is the id that this home had there last.

    `roster_key` as for `join`: what was said holds until something else is said, whatever the coordinator is.
    """
    is_said, roster_key = roster_key is not None, folder.roster_key(pin, joined.fleet) if roster_key is None else roster_key
    if roster_key and not is_said and joined.settings.update_format == MASKED:
        folder.notes.append(
            f"the owner's key {roster_key} that was said before holds here too: without a roster that it signed nothing is "
            "given; another one is said with --roster-key KEY, none with --roster-key none"
        )
    word = folder.take_up(joined.fleet, joined.signing_key)
    member = Membership(
        address=address, pin=pin, fleet=joined.fleet, device=joined.device, name=joined.name,
        signing_key=joined.signing_key, joined=word or secrets.token_hex(4), roster_key=roster_key,
        **msgspec.structs.asdict(joined.settings),
    )  # fmt: skip
    note_counted(folder, member, joined.counted, former, joined.former)
    if folder.has_standing and said(folder.root, "roster_key") != ([roster_key] * 2 if roster_key else []):
        # Its facts stand in for a damaged membership.
        folder.save_standing(folder.standing(), member)
    folder.save_membership(member)
    return member


def _check(folder: FleetFolder, pin: str, fleet: Hello | Joined, roster_key: str | None) -> None:
    """Raises `ComigsError` where a key of a roster was said, now or before, and the fleet that is to be joined is not private."""
    key = folder.roster_key(pin, fleet.fleet) if roster_key is None else roster_key
    if key and fleet.settings is not None and fleet.settings.update_format != MASKED:
        raise ComigsError(
            f"this fleet is not private, so its coordinator reads each update, whatever roster the owner's key {key} signed; "
            "this device did not join. Ask for: comigs-coordinator serve --private; or join without a roster: --roster-key none"
        )


def note_counted(
    folder: FleetFolder, member: Membership, counted: Collection[str] | None, former: str | None, replaced: str | None
) -> None:
    """Notes which of the updates that this home brought do not count any more; None: the coordinator does not say.

    With another key than before (as `former`) the device goes on where that one was only if it was removed and is `replaced`.
    Otherwise what was brought is that device's own, which may live on: nothing of it is ever brought again from here.
    """
    standing = folder.standing()
    before, own = (standing.brought, standing.dropped, standing.earlier), set(standing.brought).difference(standing.earlier)
    is_new = former is not None and former != member.device
    if former != member.device:
        folder.forget_heard()
    if is_new and former != replaced:
        if own:
            folder.notes.append(
                "this device has another key now: what it brought with the earlier one stays that device's, also where the fleet "
                "goes back. A device whose key was lost is removed before it joins again: comigs-coordinator revoke NAME"
            )
        standing.brought, standing.dropped, standing.earlier = {}, [], []
    else:
        standing.dropped = [] if counted is None else [each for each in standing.brought if each in own.difference(counted)]
        if is_new:
            standing.earlier = [each for each in standing.brought if each not in standing.dropped]
    if before != (standing.brought, standing.dropped, standing.earlier):
        folder.save_standing(standing, member)


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
    if text.count(":") > 1 and not {"[", "/"} & set(text):  # IPv6 without its brackets, so without a port
        text = f"[{text}]"
    wrong = ComigsError(f"{address[:60]!r} is no address of a coordinator; it looks like https://192.0.2.7:{PORT}")
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        port = PORT if parts.port is None else parts.port
    except ValueError:
        raise wrong from None
    beyond = parts.path or parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme != "https" or not parts.hostname or beyond or not port:
        raise wrong
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"https://{host}:{port}"


def _present(folder: FleetFolder) -> Membership | None:
    try:
        return folder.membership() if folder.is_member else None
    except ComigsError:  # it cannot be read: joining again mends that
        return None
