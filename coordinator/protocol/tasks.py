"""What a fleet on an engine (NVIDIA FLARE) and its sites say to each other: the engine carries one of these messages at a time.

    coordinator ──► Task: where the fleet stands, the newest generalist ──► site
    coordinator ◄── Answer: an update, or what the site lacks           ◄── site

Each is four bytes of length, JSON, and the bytes of the arrays that belong to it. An answer without an update is a question, and
brings the site another task at once.
"""

from __future__ import annotations

import msgspec

from coordinator.protocol.messages import (
    Commit,
    Count,
    Join,
    Joined,
    Message,
    Number,
    Problem,
    Refusal,
    Short,
    SignedManifest,
    State,
    T,
    UpdateId,
    decode,
    encode,
)

LINKS = 16  # of the chain that every task shows; a device further behind asks for more


class Rejected(Message):
    """What a device brought last and does not count."""

    update_id: UpdateId | None
    problem: Problem


class Membership(Message, omit_defaults=True):
    """What `State` says of one device."""

    device: Short
    counted: list[str] = msgspec.field(default_factory=list)
    counted_in: list[Number] = msgspec.field(default_factory=list)  # none: from a desk that does not say
    has_contributed: bool = False
    rejected: Rejected | None = None


class Task(Message, omit_defaults=True):
    """The generalist's bytes stand behind it: `change` of what it adds to the one before, or `whole` of all of it."""

    word: Short  # another for each task; its answer names it
    fleet: Short
    state: State  # without what it says of one device, which is ...
    mine: Membership | None  # ... of the device of the site's name; None: it is no member
    links: list[SignedManifest]  # of the chain, the newest last
    address: Short  # of the coordinator's own door, and ...
    pin: Short  # ... the SHA-256 of its certificate: for a fleet that leaves the engine
    change: Count = 0
    whole: Count = 0
    joined: Joined | None = None  # to the one site that asked, or ...
    problem: Problem | None = None  # ... why it is not answered


class Answer(Message, omit_defaults=True):
    """The update's bytes stand behind it."""

    word: Short  # the task's
    device: Short = ""  # the id that the site's home has in the fleet; empty before it joined
    commit: Commit | None = None
    refusal: Refusal | None = None
    join: Join | None = None  # without a code: the engine has admitted the site
    after: Number | None = None  # links behind this one are wanted
    whole: bool = False  # the whole generalist is wanted


def head(message: Message) -> bytes:
    """The message; its arrays' bytes go behind it."""
    data = encode(message)
    return len(data).to_bytes(4, "little") + data


def unpack(data: bytes, kind: type[T]) -> tuple[T, bytes]:
    """The message, and the bytes behind it; raises `msgspec.DecodeError`."""
    end = 4 + int.from_bytes(data[:4], "little")
    if len(data) < end:
        raise msgspec.DecodeError(f"it ends after {len(data):,} of {end:,} bytes")
    return decode(data[4:end], kind), data[end:]
