"""What a device keeps of the fleet it belongs to, in `fleet/` of its home; without torch.

    membership.json          the coordinator's address and pin, this device's id
    standing.safetensors     this device's generalist as far as the coordinator has received it, and what it started from
    outbox.safetensors       an update that the coordinator has not acknowledged; outbox.tried: it may have it all the same
    generalists/000012       the last three generalists that were accepted

The device's key is `device.key` beside them. Each file is replaced as a whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import SafetensorError
from safetensors.numpy import load as parse

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.home.folder import Home
from coordinator.protocol import keys
from coordinator.protocol.wire import Arrays, pieces

KEPT_GENERALISTS = 3
_FACTS = "facts"  # JSON, as bytes in a tensor


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


@dataclass
class Standing:
    """Where this device stands with its fleet. `number` grows with every change, so that a checkpoint can name one."""

    number: int = 0
    trained_from: int = -1  # number of the generalist that training started from; -1: none yet
    head: int = -1  # the newest generalist that was verified ...
    head_hash: str = ""  # ... and the hash of its manifest
    refused: int = -1  # the newest generalist that made this device's text worse
    kept: dict[str, str] = field(default_factory=dict)  # number -> SHA-256 of the generalists in the folder
    acknowledged: str = ""  # id of the last update that moved the reference
    unsent_tokens: int = 0  # trained on since the last update that arrived
    # What the coordinator has received of this device's generalist, on top of the one that training started from.
    reference: Arrays = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """An update on its way: `packed` as it is sent, `id` tells it from others."""

    id: str
    trained_from: int
    tokens: int
    update_format: str
    averaging: str
    validation_loss: float | None
    packed: dict[str, Any]  # arrays of any type


class FleetFolder:
    """The files."""

    def __init__(self, home: Home) -> None:
        self.root = home.root / "fleet"
        self.key_file = home.root / "device.key"
        self._membership, self._standing = self.root / "membership.json", self.root / "standing.safetensors"
        self._outbox, self._tried = self.root / "outbox.safetensors", self.root / "outbox.tried"
        self._generalists = self.root / "generalists"

    # Membership ---------------------------------------------------------------------------------------------------

    @property
    def is_member(self) -> bool:
        """Whether this device has joined a fleet."""
        return self._membership.exists()

    def membership(self) -> Membership:
        """Raises `ComigsError` where there is none."""
        if not self.is_member:
            raise ComigsError("this device belongs to no fleet; get a link from its coordinator and run: comigs-edge join LINK")
        try:
            return Membership(**json.loads(self._membership.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise ComigsError(f"{self._membership} cannot be read ({error}); join again: comigs-edge join LINK") from error

    def save_membership(self, membership: Membership) -> None:
        """Writes it, if it changed."""
        if not self.is_member or self.membership() != membership:
            files.write_atomic(self._membership, json.dumps(asdict(membership), indent=1).encode())

    def leave(self) -> None:
        """Deletes all but the device's key."""
        shutil.rmtree(self.root, ignore_errors=True)

    def key(self) -> Ed25519PrivateKey:
        """This device's key; made when it is first asked for."""
        if not self.key_file.exists():
            files.write_atomic(self.key_file, keys.key_to_pem(keys.new_key()))
        return keys.key_from_pem(self.key_file.read_bytes(), self.key_file)

    # Standing and outbox ------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """Where the device stands; a fresh one where nothing was exchanged yet."""
        return Standing(**_read(self._standing, "reference")) if self._standing.exists() else Standing()

    def save_standing(self, standing: Standing) -> None:
        """Writes it."""
        _write(self._standing, "reference", standing)

    def outbox(self) -> Sealed | None:
        """The update that waits."""
        return Sealed(**_read(self._outbox, "packed")) if self._outbox.exists() else None

    def seal(self, update: Sealed) -> None:
        """Puts an update into the outbox, in place of one that is there."""
        self._tried.unlink(missing_ok=True)
        _write(self._outbox, "packed", update)

    @property
    def was_tried(self) -> bool:
        """Whether the coordinator may have the update in the outbox already, although nobody heard so."""
        return self._tried.exists() and self._outbox.exists()

    def mark_tried(self) -> None:
        """From here on the update must be brought as it is, or be refused."""
        if not self.was_tried:
            files.write_atomic(self._tried, b"")

    def empty_outbox(self) -> None:
        """The update has arrived, or will not be brought."""
        self._outbox.unlink(missing_ok=True)
        self._tried.unlink(missing_ok=True)

    # Generalists --------------------------------------------------------------------------------------------------

    def generalist_path(self, number: int) -> Path:
        """Where a generalist is kept."""
        return self._generalists / f"{number:06d}.safetensors"

    def keep(self, standing: Standing, number: int, sha256: str) -> None:
        """Notes a generalist that was brought, and deletes all but the last three."""
        standing.kept[str(number)] = sha256
        for old in sorted(standing.kept, key=int)[:-KEPT_GENERALISTS]:
            del standing.kept[old]
            self.generalist_path(int(old)).unlink(missing_ok=True)


def _write(path: Path, arrays: str, record: Standing | Sealed) -> None:
    """`arrays` is the field that holds the arrays; the others are the facts."""
    facts = dict(vars(record))
    tensors = {**facts.pop(arrays), _FACTS: np.frombuffer(json.dumps(facts).encode(), np.uint8)}
    with files.atomic_writer(path) as file:
        file.writelines(pieces(tensors))


def _read(path: Path, arrays: str) -> dict[str, Any]:
    try:
        tensors = parse(path.read_bytes())
        facts: dict[str, Any] = json.loads(tensors.pop(_FACTS).tobytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise ComigsError(f"{path} is damaged ({error}); delete it and run: comigs-edge sync") from error
    return {**facts, arrays: tensors}
