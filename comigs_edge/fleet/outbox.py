"""The update that waits to be brought: what is sent of a generalist's progress, and how it is packed."""

from __future__ import annotations

import secrets

from comigs_edge.fleet.folder import FleetFolder, Membership, Sealed
from coordinator.protocol import compress, rounds
from coordinator.protocol.wire import Arrays

Shapes = dict[str, tuple[int, ...]]  # of the generalist's tensors, by name


class Outbox:
    """One update at most. What is learned while it waits comes with the next one."""

    def __init__(self, folder: FleetFolder, shapes: Shapes) -> None:
        self._folder, self._shapes = folder, shapes

    @property
    def update(self) -> Sealed | None:
        """What waits."""
        return self._folder.outbox()

    def pack(
        self, change: Arrays, trained_from: int, membership: Membership, tokens: int = 0, loss: float | None = None
    ) -> Sealed:
        """A change of a generalist in the fleet's format, of the tensors that this round's averaging trains."""
        format_name = compress.update_format(membership.update_format, trained_from)
        names = rounds.trained_names(self._shapes, membership.averaging, trained_from + 1)
        return Sealed(
            id=secrets.token_hex(8), trained_from=trained_from, tokens=tokens, update_format=format_name,
            averaging=membership.averaging, validation_loss=loss,
            packed=compress.pack({name: change[name] for name in names}, format_name),
        )  # fmt: skip

    def unpack(self, update: Sealed) -> Arrays:
        """The change as the coordinator reads it."""
        names = rounds.trained_names(self._shapes, update.averaging, update.trained_from + 1)
        return compress.unpack(update.packed, {name: self._shapes[name] for name in names}, update.update_format)

    def put(self, update: Sealed) -> None:
        """Replaces what waits, unless that may have arrived: then it goes first, as it is."""
        if not self._folder.was_tried:
            self._folder.seal(update)

    def mark_tried(self) -> None:
        """What waits may have arrived from here on."""
        self._folder.mark_tried()

    def clear(self) -> None:
        """It has arrived, or is not brought."""
        self._folder.empty_outbox()
