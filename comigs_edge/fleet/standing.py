"""Where a device stands with its fleet, and an update on its way; `fleet/folder.py` keeps both on the disk. Without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coordinator.protocol.wire import Arrays


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
    alone: str = ""  # name of the last begin of trainings alone whose result is in `on_top`
    brought: dict[str, int] = field(default_factory=dict)  # id -> round of the last updates that counted
    best: int = -1  # the generalist that was best for this device's text; -1: none was judged yet
    heads: dict[str, str] = field(default_factory=dict)  # number -> hash of the last manifests that were verified
    restored: int = 0  # number of the coordinator's last restoration that is known
    dropped: list[str] = field(default_factory=list)  # ids of updates that counted until this device was removed from the fleet
    earlier: list[str] = field(default_factory=list)  # ids of those in `brought` that came with an earlier key of this device
    bytes_sent: int = 0  # of updates, and ...
    bytes_received: int = 0  # ... of generalists, while this device belongs to the fleet
    # What the coordinator has received of this device's generalist, on top of the one that training started from.
    reference: Arrays = field(default_factory=dict)
    on_top: Arrays | None = None  # what it had learned beyond that at the last exchange; None: an earlier version wrote no such


@dataclass
class Written(Standing):
    """As it lies on the disk: with the word of the membership that it belongs to."""

    joined: str | None = None  # None: an earlier version wrote no such


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
