"""A device's membership in a fleet, as it lies on its disk."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from comigs_edge.errors import ComigsError
from comigs_edge.fleet.records import known
from coordinator.protocol.compress import MASKED

_FLAWS = (OSError, ValueError, TypeError, AttributeError)  # of a file


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Of one device in one fleet."""

    address: str
    pin: str  # SHA-256 of the coordinator's TLS certificate, hexadecimal
    fleet: str
    device: str
    name: str
    signing_key: str  # the coordinator's, for manifests
    joined: str  # a random word: tells this membership from earlier ones
    local_steps: int  # this and the next two: as the coordinator said last
    update_format: str
    averaging: str
    roster_key: str = ""  # of the owner, who signs the roster; empty: private windows are shared with any device

    def facts(self) -> dict[str, Any]:
        """As JSON; earlier versions read what they know, a membership without a key of a roster."""
        return {name: value for name, value in asdict(self).items() if name != "roster_key" or value}

    @property
    def is_private(self) -> bool:
        """Whether updates go into sums of which the coordinator sees no single one."""
        return self.update_format == MASKED


def find_membership(path: Path, facts: Path) -> tuple[Membership, str | None]:
    """The membership, from the standing's `facts` where it is damaged or gone, with a note then; raises `ComigsError`."""
    try:
        return _read(path), None
    except _FLAWS as error:
        flaw = f"cannot be read ({error})" if path.exists() else "is gone"
    try:
        return _read(facts), f"{path} {flaw}; it is made anew of what {facts.name} says"
    except _FLAWS as error:
        raise ComigsError(
            f"{path} {flaw}; what was learned is kept, ask for an invitation (comigs-coordinator invite) and join again: "
            "comigs-edge join LINK"
        ) from error


def _read(path: Path) -> Membership:
    return msgspec.convert(known(json.loads(path.read_bytes()), Membership), Membership)


def said(root: Path, name: str) -> list[str]:
    """What the membership in a fleet's folder, and the facts of its standing, say of one thing; what is damaged says nothing."""
    found = []
    for path in (root / "membership.json", root / "standing.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found.append(str(json.loads(path.read_bytes())[name]))
    return found
