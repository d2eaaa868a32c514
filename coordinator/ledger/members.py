"""Who belongs to a fleet: invitations, joining, the devices and their last contacts, revocation.

What the fleet trains is fixed by the first device that joins; every later one must have the same base and tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from coordinator.ledger.database import Database
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError, Refused
from coordinator.protocol.generalist import may_leave
from coordinator.protocol.messages import MAX_TENSORS, MAX_WEIGHTS, NAME_PATTERN, SHA256_PATTERN, Generalist, Join, decode, encode

INVITATION_SECONDS = 86400.0
FLUSH_SECONDS = 600.0  # contacts and counts are written at most this often: polls write nothing
FORMS = ("lora", "parallel")  # of experts
MAX_BASE_NAME = 255  # letters


@dataclass(kw_only=True)
class Device:
    """A member of the fleet; contact and counts may be newer here than on the disk."""

    id: str
    name: str
    public_key: Ed25519PublicKey
    revoked: float | None
    last_contact: float
    joined_at: int  # number of the generalist that was the newest then; -1: none
    former: str | None  # id of the removed device whose place it took, because its key was lost: one device at most takes it
    bytes_in: int = 0
    bytes_out: int = 0
    refused: str | None = None  # why its last update was not acceptable, since the start


class Members:
    """The devices of a fleet."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self.devices = {
            row["id"]: Device(
                id=row["id"], name=row["name"], public_key=keys.public_key(row["public_key"]), revoked=row["revoked"],
                last_contact=row["last_contact"], joined_at=row["joined_at"], former=row["former"],
                bytes_in=row["bytes_in"], bytes_out=row["bytes_out"],
            ) for row in database.rows("SELECT * FROM devices")
        }  # fmt: skip
        self._changed: set[str] = set()
        self._flushed = clock()

    @property
    def generalist(self) -> Generalist | None:
        """What the fleet trains; None before the first device."""
        return read_generalist(self._database)

    def active(self, seconds: float) -> int:
        """Number of devices with a contact in the last `seconds`."""
        return len(self.in_touch(self._clock() - seconds))

    def in_touch(self, since: float) -> list[Device]:
        """Devices with a contact since that time."""
        return [device for device in self.devices.values() if device.revoked is None and device.last_contact >= since]

    def member(self, device_id: str) -> Device:
        """The device that signs with this id; raises `Refused`."""
        device = self.devices.get(device_id)
        if device is None:
            raise Refused(401, "unknown_device", "the coordinator does not know this device; join the fleet first")
        if device.revoked is not None:
            raise Refused(403, "revoked", f"{device.name} was removed from the fleet; ask its owner for a new invitation")
        return device

    # Contacts -----------------------------------------------------------------------------------------------------

    def record_contact(self, device: Device, bytes_in: int, bytes_out: int) -> None:
        """Remembers a contact; it reaches the disk later."""
        device.last_contact = self._clock()
        device.bytes_in += bytes_in
        device.bytes_out += bytes_out
        self._changed.add(device.id)

    def flush(self, now_at_all_costs: bool = False) -> None:
        """Writes contacts and counts, every ten minutes or now."""
        if self._changed and (now_at_all_costs or self._clock() - self._flushed >= FLUSH_SECONDS):
            with self._database.transaction():
                for device in map(self.devices.__getitem__, self._changed):
                    self._database.run(
                        "UPDATE devices SET last_contact = ?, bytes_in = ?, bytes_out = ? WHERE id = ?",
                        device.last_contact, device.bytes_in, device.bytes_out, device.id,
                    )  # fmt: skip
            self._changed.clear()
            self._flushed = self._clock()

    def move_contacts(self, moved: Callable[[float], float]) -> None:
        """Changes the time of every last contact, as where the clock was set, and writes what changed."""
        for device in self.devices.values():
            if (contact := moved(device.last_contact)) != device.last_contact:
                device.last_contact = contact
                self._changed.add(device.id)
        self.flush(now_at_all_costs=True)

    # Joining ------------------------------------------------------------------------------------------------------

    def invite(self, name: str | None, address: str, pin: bytes) -> dict[str, object]:
        """A one-time link for a device; of its code only the hash is kept. `note`: who alone may use it, where that is so.

        A name that is known is its device's own, with the key that it has. One that was removed may come back with another.
        """
        holder = None if name is None else self._holder(_checked_name(name))
        code, now = keys.new_code(), self._clock()
        with self._database.transaction():
            self._database.run("DELETE FROM invitations WHERE expires < ? AND device IS NULL", now)
            self._database.run(
                "INSERT INTO invitations (code, name, made, expires) VALUES (?, ?, ?, ?)",
                keys.code_hash(code), name, now, now + INVITATION_SECONDS,
            )  # fmt: skip
        note = None
        if holder is not None and holder.revoked is None:
            note = f"only {name} itself can use it; where its key is lost, remove it first: comigs-coordinator revoke {name}"
        return {"link": keys.link(address, code, pin), "name": name, "expires": now + INVITATION_SECONDS, "note": note}

    def join(self, wish: Join) -> Device:
        """Makes a device a member, once for each invitation; the same device may ask again. Raises `Refused`."""
        try:
            public_key, identity = keys.public_key(wish.public_key), keys.device_id(wish.public_key)
        except ValueError as error:
            raise Refused(422, "bad_key", "the public key is not an Ed25519 key") from error
        invitation = self._database.row("SELECT * FROM invitations WHERE code = ?", keys.code_hash(wish.code))
        advice = "ask for a new one: comigs-coordinator invite"
        if invitation is None:
            raise Refused(403, "unknown_code", f"this invitation is not known; {advice}")
        if invitation["device"] not in (None, identity):
            raise Refused(403, "used_code", f"this invitation was used already; {advice}")
        if invitation["device"] is None:
            if invitation["expires"] < self._clock():
                raise Refused(403, "expired_code", f"this invitation is too old; {advice}")
            self._admit(wish, invitation, identity, public_key)
        return self.member(identity)

    def _admit(self, wish: Join, invitation: dict[str, Any], identity: str, public_key: Ed25519PublicKey) -> None:
        known, wanted = self.generalist, wish.name or invitation["name"]
        if flaw := _flaw(wish.generalist):
            raise Refused(422, "bad_generalist", flaw)
        if known is not None and (difference := _difference(known, wish.generalist)):
            raise Refused(409, "other_generalist", difference)
        if (heir := self._heir(identity)) is not None:
            raise Refused(
                409, "replaced",
                f"{heir} took this key's place, with all that it had brought; delete device.key in this home and join as another",
            )  # fmt: skip
        before = self.devices.get(identity)  # a member before, perhaps revoked: it keeps its name
        if wanted is not None:
            self._check_wish(_checked_name(wanted), before, is_invited=wanted == invitation["name"])
        name, now = wanted or (before.name if before else self._free_name()), self._clock()
        newest = self._database.value("SELECT coalesce(max(number), -1) FROM rounds WHERE published IS NOT NULL")
        joined_at = before.joined_at if before and before.revoked is None else newest  # who was removed begins anew
        former = before.former if before else wish.former if self._is_free(wish.former) else None
        with self._database.transaction():
            if known is None:
                self._database.set_fact("generalist", encode(wish.generalist).decode())
            self._database.run("UPDATE invitations SET device = ? WHERE code = ?", identity, invitation["code"])
            if (holder := self._holder(name)) is not None and holder.id != identity:
                self._free(holder)
            self._database.run(
                "INSERT INTO devices (id, name, public_key, joined, last_contact, version, joined_at, former) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET name = excluded.name, revoked = NULL, joined_at = excluded.joined_at",
                identity, name, wish.public_key, now, now, wish.version[:32], joined_at, former,
            )  # fmt: skip
        self.devices[identity] = Device(
            id=identity, name=name, public_key=public_key, revoked=None, last_contact=now, joined_at=joined_at, former=former,
            bytes_in=before.bytes_in if before else 0, bytes_out=before.bytes_out if before else 0,
        )  # fmt: skip

    def _check_wish(self, name: str, before: Device | None, is_invited: bool) -> None:
        """Raises `Refused` where the device that was `before` here, or a new one, cannot have this name."""
        if before is not None and before.revoked is None and name != before.name:
            raise Refused(
                409, "other_name",
                f"this key is already known as {before.name}; a copied card needs a key of its own: delete its device.key and "
                f"join. To rename the device, its owner first removes it: comigs-coordinator revoke {before.name}",
            )  # fmt: skip
        holder = self._holder(name)
        if holder is None or holder is before or (holder.revoked is not None and is_invited):
            return
        if holder.revoked is None:
            way = f"choose another with --name; if this is {name} with a new key, its owner removes the old one"
            raise Refused(409, "name_taken", f"there is a device {name} already; {way}: comigs-coordinator revoke {name}")
        way = f"choose another with --name, or ask for an invitation to it: comigs-coordinator invite --name {name}"
        raise Refused(409, "name_taken", f"{name} is the name of a device that was removed; {way}")

    def _heir(self, former: str) -> str | None:
        """Name of the device that took this one's place."""
        return next((device.name for device in self.devices.values() if device.former == former), None)

    def _is_free(self, former: str | None) -> bool:
        device = None if former is None else self.devices.get(former)
        return device is not None and device.revoked is not None and self._heir(device.id) is None

    def _holder(self, name: str) -> Device | None:
        return next((device for device in self.devices.values() if device.name == name), None)

    def _free(self, holder: Device) -> None:
        """Another device gets the name of one that was removed."""
        holder.name = f"{holder.name[:40]}.{holder.id[:16]}"
        self._database.run("UPDATE devices SET name = ? WHERE id = ?", holder.name, holder.id)

    def _free_name(self) -> str:
        taken = {device.name for device in self.devices.values()}
        return next(name for number in range(1, len(taken) + 2) if (name := f"device-{number}") not in taken)

    def revoke(self, name: str) -> Device:
        """Removes a device: its next request is refused, what it sent to the open round does not count."""
        device = next((device for device in self.devices.values() if name in (device.name, device.id)), None)
        if device is None:
            raise CoordinatorError(f"there is no device {name}; list them with: comigs-coordinator devices")
        if device.revoked is not None:
            raise CoordinatorError(f"{device.name} was removed already; to have it back: comigs-coordinator invite --name {name}")
        now = self._clock()
        with self._database.transaction():
            self._database.run("UPDATE devices SET revoked = ? WHERE id = ?", now, device.id)
            self._database.run(
                "DELETE FROM updates WHERE device = ? AND round IN (SELECT number FROM rounds WHERE closed IS NULL)", device.id
            )
        device.revoked = now
        return device


def read_generalist(database: Database) -> Generalist | None:
    """What a ledger's fleet trains; None before the first device."""
    text = database.fact("generalist")
    return None if text is None else decode(text.encode(), Generalist)


def _checked_name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise Refused(422, "bad_name", f"{name[:80]!r} is no name: use up to 64 letters, digits, dots and dashes")
    return name


def _flaw(generalist: Generalist) -> str | None:
    """Why a fleet cannot train this; None if it can."""
    if generalist.form not in FORMS or not 1 <= len(generalist.base_name) <= MAX_BASE_NAME or not 0 < generalist.scale < math.inf:
        return f"a generalist is of the form {' or '.join(FORMS)}, its scale is above 0 and its base has a name"
    if not 1 <= len(generalist.tensors) <= MAX_TENSORS:
        return f"a generalist has 1 to {MAX_TENSORS} tensors and not {len(generalist.tensors)}"
    if not re.fullmatch(SHA256_PATTERN, generalist.base_sha256):
        return "the base's SHA-256 is not one"
    for name, shape in generalist.tensors.items():
        if not may_leave(name):
            return f"{name[:80]!r} is not a tensor of a generalist"
        if not 1 <= len(shape) <= 4 or not all(1 <= size <= 1 << 24 for size in shape):
            return f"the shape of {name[:80]} is not one"
    weights = _weights(generalist)
    return f"a generalist of {weights:,} numbers is too large" if weights > MAX_WEIGHTS else None


def _difference(known: Generalist, wanted: Generalist) -> str | None:
    """Why a device cannot join a fleet that trains `known`; None if it can."""
    if known.base_sha256 != wanted.base_sha256:
        return (
            f"this fleet's base is {known.base_name} ({known.base_sha256[:12]}) and this device's {wanted.base_name} "
            f"({wanted.base_sha256[:12]}); use the same file: comigs-edge init --force --base FILE.gguf"
        )
    if (known.form, known.tensors) != (wanted.form, wanted.tensors):
        return (
            f"this fleet trains {known.form} experts of {_weights(known):,} weights and this device has {wanted.form} "
            f"experts of {_weights(wanted):,}; set the same [model] in config.toml (expert_form, rank, expert_width, attention)"
        )
    if known.scale != wanted.scale:
        return f"this fleet's experts are scaled by {known.scale:g} and this device's by {wanted.scale:g}; set the same alpha"
    return None


def _weights(generalist: Generalist) -> int:
    return sum(math.prod(shape) for shape in generalist.tensors.values())
