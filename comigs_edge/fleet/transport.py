"""What carries updates and generalists between a device and its fleet. HTTP is the first: `http.py`.

A transport promises little: an update may arrive without its receipt, which is why every `State` names the updates that
counted last, and it may be brought again, which is why it has an id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from comigs_edge.errors import Away
from comigs_edge.fleet.standing import Sealed
from comigs_edge.progress import Progress
from coordinator.protocol.messages import Manifest, Receipt, Refusal, Settings, SignedManifest, State

Leave = Callable[[int, Settings], bool]  # see `Transport.exchange`


class Offline(Away):
    """The fleet cannot be reached now."""

    retry_after: float | None = None  # seconds


@dataclass(frozen=True, kw_only=True)
class News:
    """Where the fleet stands, and what became of the update that was to be brought."""

    state: State
    receipt: Receipt | None = None  # None: only `state.counted` says whether the update counts
    is_rejected: bool = False  # the update never counts as it is
    kept_out: str | None = None  # why no private window takes what this device learned, and what to do
    reason: str = ""  # why it does not count, where a person should know: if it is rejected, every one with the same content


class Transport(Protocol):
    """Every call may raise `Offline`, or `ComigsError` where the fleet has nothing to do with this device."""

    def exchange(self, update: Sealed | None, leaves: Leave, progress: Progress) -> News:
        """Brings `update`, unless it counts already or the open round has one of this device.

        `leaves` is called with the update's bytes and the settings that it is sent under, before any of it may arrive: from then
        on it must not change. It returns whether some of it may have arrived before; where it must not leave it raises
        `ComigsError`.
        """

    def manifests(self, after: int) -> list[SignedManifest]:
        """The chain of generalists behind number `after`, or its next links."""

    def download(self, manifest: Manifest, target: Path, progress: Progress) -> None:
        """Brings the generalist of a manifest to `target`, with its SHA-256 checked."""

    def download_change(self, manifest: Manifest, target: Path, progress: Progress) -> None:
        """Brings what the generalist of a manifest adds to the one before, likewise; the manifest names it."""

    def refuse(self, refusal: Refusal) -> None:
        """Says that this device keeps its generalist; nothing happens where another one is the newest already."""
