"""The update that waits to be brought: what is sent of a generalist's progress, and how it is packed."""

from __future__ import annotations

import secrets
from typing import get_args

import numpy as np

from comigs_edge.arrays import digest, norm
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.membership import Membership
from comigs_edge.fleet.standing import Sealed
from comigs_edge.fleet.transport import News
from coordinator.protocol import compress, counting, rounds
from coordinator.protocol.aggregate import MAX_ABSOLUTE
from coordinator.protocol.messages import Settings
from coordinator.protocol.private.masks import MOST_ABSOLUTE
from coordinator.protocol.wire import Arrays, Shapes

MARGIN = 1 - 2**-10  # rounding must not lift an update over a bound
MOST, MOST_MASKED = MAX_ABSOLUTE * MARGIN, MOST_ABSOLUTE * MARGIN


def pack(change: Arrays, trained_from: int, membership: Membership, tokens: int = 0, loss: float | None = None) -> Sealed:
    """A change of a generalist in the fleet's format, of the tensors that this round's averaging trains."""
    format_name = compress.update_format(membership.update_format, trained_from)
    names = rounds.trained_names(change, membership.averaging, trained_from + 1)
    return Sealed(
        id=secrets.token_hex(8), trained_from=trained_from, tokens=tokens, update_format=format_name, validation_loss=loss,
        averaging=membership.averaging, packed=compress.pack({name: change[name] for name in names}, format_name),
    )  # fmt: skip


def within(change: Arrays, limit: float, most: float = MOST) -> tuple[Arrays, float]:
    """The change scaled down to this L2 norm, and to numbers that a coordinator takes, where it is larger; and the factor."""
    length, largest = norm(change), max((float(np.abs(array).max(initial=0)) for array in change.values()), default=0.0)
    if not (length > limit or largest > most):  # what is no number is the coordinator's to refuse
        return change, 1.0
    share = np.float32(min(limit / length, most / largest) * MARGIN)
    return {name: array * share for name, array in change.items()}, float(share)


def most(membership: Membership) -> float:
    """The largest number that an update may have."""
    return MOST_MASKED if membership.is_private else MOST


def fits(update: Sealed, change: Arrays, limit: float, membership: Membership) -> bool:
    """Whether an update is in the fleet's format, where that is private, and within its bounds."""
    is_other = membership.is_private and update.update_format != "float16"
    return not is_other and within(change, limit, most(membership))[1] == 1


def is_same(before: Sealed | None, update: Sealed) -> bool:
    """Whether both have the same content."""
    return before is not None and digest(before.packed) == digest(update.packed)


def say_why(news: News) -> list[str]:
    """What the user should know of an update that does not count; nothing where the reason is a usual one."""
    if news.reason and news.is_rejected:
        return [
            f"the coordinator refuses what was learned here ({news.reason[:300]}); it stays, and is sent again once it changed"
        ]
    return [news.reason[:300]] if news.reason else []


def unpack(update: Sealed, shapes: Shapes) -> Arrays:
    """The change as the coordinator reads it; `shapes` are the generalist's."""
    sent = counting.update_shapes(shapes, update.averaging, update.trained_from)
    return compress.unpack(update.packed, sent, update.update_format)


def check_settings(settings: Settings, membership: Membership | None = None) -> None:
    """Raises `ComigsError` for updates that this version cannot make, and for single ones of a member of a private fleet."""
    if settings.update_format not in (*compress.FORMATS, compress.MASKED) or settings.averaging not in get_args(rounds.Averaging):
        raise ComigsError(
            f"the fleet asks for updates as {settings.update_format[:20]!r}, averaged {settings.averaging[:20]!r}, which this "
            "version does not know; nothing is lost, upgrade comigs-edge"
        )
    if membership is not None and membership.is_private and settings.update_format != compress.MASKED:
        raise ComigsError(
            "this fleet was private, and now its coordinator asks for single updates, which it can read; nothing was sent. "
            "If you agree to that, join again: comigs-edge join LINK (on FLARE: comigs-edge leave, then flare run KIT)"
        )
