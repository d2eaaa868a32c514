"""What devices and coordinator say to each other, as JSON: small, and strict about the fields that are known.

Both sides ignore fields that they do not know, so that versions can be mixed; a new field therefore has a default.

All times are seconds since 1970 by the coordinator's clock; a device needs no clock. Sizes are bytes.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"
UPDATE_ID_PATTERN = r"^[0-9a-f]{1,64}(?!\n)$"  # $ alone lets a line break follow
COUNTED_IDS, JOINED_IDS = 8, 256  # of a device's last updates, in every `State` and where it joins
PROTOCOL = 1  # grows where a side that ignores what it does not know would do harm
MAX_TENSORS = 4096
MAX_WEIGHTS = 1 << 28  # numbers in a generalist

MAX_INTEGER = (1 << 53) - 1  # what every reader of JSON keeps exactly, and SQLite too

Sha256 = Annotated[str, msgspec.Meta(pattern=SHA256_PATTERN, max_length=64)]
UpdateId = Annotated[str, msgspec.Meta(pattern=UPDATE_ID_PATTERN, max_length=64)]
Number = Annotated[int, msgspec.Meta(ge=-1, le=MAX_INTEGER)]  # of a round or its generalist
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=31e7)]
Steps = Annotated[int, msgspec.Meta(ge=1, le=10**6)]
Short = Annotated[str, msgspec.Meta(max_length=255)]
T = TypeVar("T")


class Message(msgspec.Struct, kw_only=True):
    """Base of all messages."""


class Generalist(Message):
    """What a fleet trains; fixed by the first device that joins, and every later one must have the same."""

    base_name: str
    base_sha256: str
    form: str  # of the experts: lora or parallel
    scale: float  # factor on what an expert adds
    tensors: dict[str, tuple[int, ...]]  # name -> shape


class Join(Message, omit_defaults=True):
    """A device asks to join, signed with the key in this message; what is not said is left out, for older coordinators."""

    code: str  # of the invitation, base64url
    name: str | None  # None: the invitation's, or one is made up
    public_key: str  # Ed25519, base64url of its 32 bytes
    generalist: Generalist
    version: str  # of comigs-edge
    former: Short | None = None  # the id that it had in this fleet with an earlier key


class Settings(Message):
    """How a fleet's rounds work; part of every answer that a device acts on."""

    local_steps: Steps  # expert steps between two updates
    update_format: Short  # a `compress.UpdateFormat`, or `compress.MASKED`: earlier versions say that they do not know that
    averaging: Short  # a `rounds.Averaging`


class Joined(Message):
    """The answer to `Join`."""

    fleet: Short
    device: Short  # the id that signs
    name: Short
    signing_key: Short  # the coordinator's Ed25519 key that signs manifests, base64url
    settings: Settings
    counted: list[str] | None = None  # ids of this device's last updates that count; None: from a coordinator that does not say
    former: Short | None = None  # the removed device whose place it takes with another key: `counted` is of that one too


class Manifest(Message):
    """A published generalist. Manifests form a chain: each names the SHA-256 of the one before."""

    fleet: Short
    round: Number
    sha256: Sha256  # of the payload
    size: Count
    previous: Short  # SHA-256 of the previous manifest's bytes; empty for the first
    base_sha256: Sha256
    devices: Count  # whose updates are in it
    rolled_back_to: Number | None = None  # the round whose generalist this is again
    change_sha256: Sha256 | None = None  # of the change from the generalist before, as float16: half the bytes
    change_size: Count | None = None


class Restoration(Message):
    """The coordinator was restored from a backup: what it published after generalist `round` is no part of its chain any more."""

    fleet: Short
    number: Count  # grows with every restoration; an older note is not followed
    round: Number  # the newest generalist that the backup held; -1: none
    manifest_hash: Short  # `keys.chain_hash` of that generalist's manifest; empty without one


class SignedRestoration(Message):
    """The very bytes that were signed, and the signature (Ed25519), both base64url."""

    restoration: str
    signature: str


class SignedManifest(Message):
    """The very bytes that were signed, and the signature (Ed25519), both base64url."""

    manifest: str
    signature: str


class WindowNote(Message, omit_defaults=True):
    """A private window that is on its way."""

    window: Short
    wants: Short = ""  # the stage for which this device has not given anything and may give it now


class State(Message, omit_defaults=True):
    """Where a fleet stands, for one device."""

    open_round: Number  # the next generalist's number
    newest: SignedManifest | None  # None: there is no generalist yet
    has_contributed: bool  # this device, to the open round
    settings: Settings
    next_poll_seconds: Seconds  # a device with nothing to send waits this long before it asks again
    counted: list[str] = []  # ids of this device's updates that count, the last of them, newest last
    counted_in: list[Number] = []  # their rounds, in the same order; none: from a coordinator that does not say
    norm_limit: Annotated[float, msgspec.Meta(ge=0)] | None = (
        None  # L2 norm up to which an update counts in full; a device brings the rest the next time
    )
    restored: SignedRestoration | None = None  # the last restoration
    windows: list[WindowNote] = []  # of a private fleet, those that are on their way
    is_listed: bool = True  # whether this device is in the roster of the fleet's owner, where there is one
    waits_for: Count = 0  # more devices that the open round needs before it can close, where `min_devices` asks for several


class Commit(Message, omit_defaults=True):
    """Turns an upload into an update of the open round. It counts once, however often it is sent."""

    sha256: Sha256
    trained_from: Number  # number of the generalist that it is a change of; -1: the first generalist itself
    tokens: Count  # that it was trained on
    expected_round: Number  # the round that the device believes to be open
    validation_loss: float | None = None  # nats a token, from devices that opted in
    update_id: UpdateId | None = None  # made by the device, another for each update; None: known by payload and origin


class Receipt(Message, omit_defaults=True):
    """The update is on the coordinator's disk and counts once, even after a crash."""

    round: Number
    weight: float  # 1 for an update that was trained from the newest generalist
    state: State | None = None  # where the fleet stands now: spares the device another question


class Refusal(Message, omit_defaults=True):
    """A device keeps its old generalist because the new one is worse on its validation text."""

    round: Number
    loss_before: float | None = None  # nats a token, from devices that opted in
    loss_after: float | None = None


class Hello(Message):
    """What a coordinator tells everybody."""

    fleet: Short
    epoch: Short  # changes with every start of the coordinator; requests are signed for one epoch
    version: Short
    protocol: Count = 1  # `PROTOCOL` of the coordinator
    settings: Settings | None = (
        None  # so that nobody spends an invitation to hear them; None: from a coordinator that does not say
    )


class Problem(Message):
    """The body of every refusal."""

    error: Short  # for programs
    message: Annotated[str, msgspec.Meta(max_length=2000)]  # for people


def encode(message: Message) -> bytes:
    """JSON with sorted keys: equal messages have equal bytes."""
    return msgspec.json.encode(message, order="sorted")


def decode(data: bytes, kind: type[T]) -> T:
    """The message in `data`; raises `msgspec.DecodeError` with the reason otherwise."""
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError("a text is not UTF-8") from error
    except RecursionError as error:
        raise msgspec.DecodeError("it is nested too deeply") from error
