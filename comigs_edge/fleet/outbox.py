"""The update that waits to be brought: what is sent of a generalist's progress, and how it is packed."""

from __future__ import annotations

import secrets

from comigs_edge.fleet.folder import FleetFolder, Membership, Sealed, Standing
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

    def pack(self, generalist: Arrays, standing: Standing, membership: Membership, loss: float | None) -> Sealed:
        """The generalist less the reference, in the fleet's format, of the tensors that this round's averaging trains."""
        base = standing.trained_from
        format_name = compress.update_format(membership.update_format, base)
        names = rounds.trained_names(self._shapes, membership.averaging, base + 1)
        change = {name: generalist[name] - standing.reference[name] for name in names}
        return Sealed(
            id=secrets.token_hex(8), trained_from=base, tokens=standing.unsent_tokens, update_format=format_name,
            averaging=membership.averaging, validation_loss=loss, packed=compress.pack(change, format_name),
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
