"""The update that waits to be brought: what is sent of a generalist's progress, and how it is packed."""

from __future__ import annotations

import secrets

from comigs_edge.fleet.folder import Membership, Sealed
from coordinator.protocol import compress, counting, rounds
from coordinator.protocol.wire import Arrays, Shapes


def pack(change: Arrays, trained_from: int, membership: Membership, tokens: int = 0, loss: float | None = None) -> Sealed:
    """A change of a generalist in the fleet's format, of the tensors that this round's averaging trains."""
    format_name = compress.update_format(membership.update_format, trained_from)
    names = rounds.trained_names(change, membership.averaging, trained_from + 1)
    return Sealed(
        id=secrets.token_hex(8), trained_from=trained_from, tokens=tokens, update_format=format_name, validation_loss=loss,
        averaging=membership.averaging, packed=compress.pack({name: change[name] for name in names}, format_name),
    )  # fmt: skip


def unpack(update: Sealed, shapes: Shapes) -> Arrays:
    """The change as the coordinator reads it; `shapes` are the generalist's."""
    sent = counting.update_shapes(shapes, update.averaging, update.trained_from)
    return compress.unpack(update.packed, sent, update.update_format)
