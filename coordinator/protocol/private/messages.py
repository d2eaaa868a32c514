"""What devices and coordinator say to each other for a private window; all but the masked update itself is JSON.

    keys ──► shares ──► masked ──► confirmations ──► answers ──► the sum is opened
    U1       U2         U3         of the very U3    t of them

A window's keys and shares are exchanged while the window before is on its way. Each step is for those of the step before that
came in time, and no device waits for one: it does what it can do whenever it speaks to its coordinator.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from coordinator.protocol.messages import Count, Message, Sha256, Short, UpdateId

LEAST, MOST = 3, 64  # devices of a window
Stage = Literal["keys", "shares", "masked", "confirmations", "answers"]
DeviceId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}(?!\n)$", max_length=32)]
WindowId = DeviceId
Share = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{66}(?!\n)$", max_length=66)]


class Terms(Message):
    """What the coordinator says of a window before anybody gives anything for it, and signs."""

    fleet: Short
    window: WindowId
    least: Count  # devices whose updates are in the sum, at least; a device accepts no fewer than `LEAST`
    bound: Annotated[float, msgspec.Meta(gt=0)]  # L2 norm that no update exceeds
    numbers: Count  # of an update


class SignedTerms(Message):
    """The very bytes that were signed, and the signature (Ed25519), both base64url."""

    terms: str
    signature: str


class Keys(Message):
    """A device's public keys for one window, base64url; signed with the key that it joined with."""

    window: WindowId
    public_key: Short  # Ed25519: it joined with this
    box_key: Short  # X25519: shares are encrypted for it
    mask_key: Short  # X25519: each two devices agree on a mask
    commitment: Sha256  # of the seed of the device's own mask


class SignedKeys(Message):
    """The very bytes that were signed, and the signature, both base64url."""

    keys: str
    signature: str


class Shares(Message):
    """One box for each other device of U1: a share of the sender's own mask's seed and one of its mask key, encrypted for it."""

    boxes: dict[DeviceId, Short]


class Masked(Message):
    """The masked update is uploaded, whole."""

    sha256: Sha256
    update_id: UpdateId


class Confirmed(Message):
    """What a device signs before it gives a share: that it knows this window, as everybody else in it must."""

    context: Sha256  # of the terms and of all keys of U1
    head: Sha256  # of the manifest of the generalist that masks are for
    shared: list[DeviceId]  # U2, sorted
    senders: list[DeviceId]  # U3, sorted


class Confirmation(Message):
    """The signature under `Confirmed`, which everybody can write down for himself."""

    signature: Short


class Answer(Message):
    """For each device of U2 a share of one of its secrets: the own mask's of senders, the mask key of the others. Never both."""

    own: dict[DeviceId, Share]
    keys: dict[DeviceId, Share]


class Roster(Message):
    """The devices of a fleet, as its owner has signed them with a key that the coordinator does not have."""

    fleet: Short
    serial: Count  # of a later one it is larger
    devices: dict[Short, Short]  # the Ed25519 key that a device joined with, base64url -> its name


class SignedRoster(Message):
    """The very bytes that were signed, and the signature, both base64url; a device knows from its owner which key signs."""

    roster: str
    signature: Short
    key: Short  # the public key that is said to have signed it


class Window(Message, omit_defaults=True):
    """A window, as far as it has come, for one device."""

    stage: Stage
    terms: SignedTerms
    keys: list[SignedKeys] = msgspec.field(default_factory=list)  # U1, once it is closed
    shared: list[DeviceId] = msgspec.field(default_factory=list)  # U2, once it is closed
    boxes: dict[DeviceId, Short] = msgspec.field(default_factory=dict)  # sender -> what it has encrypted for this device
    head: Short = ""  # hash of the manifest that the masks are for, once U2 is closed
    senders: list[DeviceId] = msgspec.field(default_factory=list)  # U3, once it is closed
    confirmations: dict[DeviceId, Short] = msgspec.field(default_factory=dict)  # once there are enough
    roster: SignedRoster | None = None  # the newest that the fleet's owner has signed; None: without one
