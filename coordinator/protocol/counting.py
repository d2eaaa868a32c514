"""What counts, and what the next generalist is, as functions of values: no ledger, no files, no clock.

commit ──► check_commit ──► check_update ──► weigh, weigh_round ──► next_generalist
           does it fit?     are the bytes    how much              the generalist before plus the weighted mean,
                            acceptable?                            rounded to float16: devices that have the one
                                                                   before download half
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from coordinator.protocol import compress, norms, rounds, wire
from coordinator.protocol.aggregate import MAX_ABSOLUTE, Mean, add_change, aggregate
from coordinator.protocol.errors import Refused, WireError
from coordinator.protocol.messages import MAX_INTEGER, Commit
from coordinator.protocol.rounds import Rules
from coordinator.protocol.wire import Packed, Shapes

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Standing:
    """Where a fleet stands when a device commits an update."""

    open_round: int
    newest: int  # number of the newest generalist; -1: none yet
    has_contributed: bool  # this device, to the open round


class Claim(NamedTuple):
    """What is known of an update when its round closes."""

    weight: int
    tokens: int
    norm: float | None  # None: it came to a coordinator that did not look at norms


def check_commit(wish: Commit, standing: Standing, rules: Rules, device_name: str) -> None:
    """Raises `Refused` for an update that cannot count in the open round."""
    number, newest = standing.open_round, standing.newest
    if wish.expected_round != number:
        raise Refused(409, "stale_round", f"round {wish.expected_round} is not open, round {number} is")
    if standing.has_contributed:
        raise Refused(409, "already_counted", f"{device_name} has its update in round {number}; it counts once")
    first, last = (-1, -1) if number == 0 else (0, newest)  # only round 0 takes a generalist in place of a change
    base = wish.trained_from
    if not first <= base <= last:
        sentence = f"the update is a change of generalist {base}, the newest is {newest}; pull it first"
        raise Refused(409, "wrong_generalist", sentence)
    if rounds.staleness(newest, base) > rules.max_staleness:
        sentence = f"the update was trained from generalist {base} and {newest} is the newest; pull it first"
        raise Refused(409, "too_stale", sentence)
    if not 0 <= wish.tokens <= MAX_INTEGER or not math.isfinite(wish.validation_loss or 0.0):
        raise Refused(422, "bad_commit", "tokens must be a count and the validation loss a number")


def update_shapes(shapes: Shapes, averaging: str, trained_from: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of an update that was trained from this generalist; `shapes` are the generalist's."""
    names = rounds.trained_names(shapes, averaging, trained_from + 1)
    return {name: tuple(shapes[name]) for name in names}


def check_update(data: bytes, table: wire.Table, format_name: str) -> float:
    """The L2 norm of an update; raises `WireError` unless these bytes are one, every number of which can be summed."""
    arrays = wire.decode_expected(data, table, "the update")
    for name, value in compress.largest(arrays, format_name).items():
        if value > MAX_ABSOLUTE:
            raise WireError(f"the update: tensor {name} holds numbers beyond {MAX_ABSOLUTE:g}")
    return norms.l2_norm(compress.unpack_flat(arrays, format_name))


def weigh(wish: Commit, newest: int, rules: Rules) -> int:
    """The fixed-point weight of an update when `newest` is the newest generalist."""
    return rounds.weight(rules, rounds.staleness(newest, wish.trained_from), wish.tokens)


def weigh_round(updates: Sequence[Claim], before: Sequence[float], rules: Rules) -> list[tuple[int, int]]:
    """(weight, counted weight) of each update of a round that closes; `before`: norms that counted in the rounds before."""
    cap = rounds.token_cap([update.tokens for update in updates]) if rules.weights == "tokens" else None
    largest = norms.limit([update.norm for update in updates if update.norm is not None], before)
    weights = [update.weight if cap is None else rounds.capped(update.weight, update.tokens, cap) for update in updates]
    return [(weight, norms.bounded(weight, update.norm, largest)) for weight, update in zip(weights, updates, strict=True)]


def next_generalist(
    shapes: Shapes, before: Mapping[str, Array] | None, updates: Sequence[tuple[Mapping[str, Array], int, int]]
) -> Iterator[dict[str, Array]]:
    """The next generalist, one tensor at a time in the order of the names; `updates` are (change, counted weight, weight).

    None is the generalist before the first one: zeros, to which the first update adds itself. Mappings may read from disk:
    each tensor is taken once and not kept.
    """
    if before is None:
        for name in sorted(shapes):
            whole = (({name: update[name]}, weight) for update, _, weight in updates if name in update)
            yield aggregate({name: np.zeros(shapes[name], np.float32)}, whole)
    else:
        for change in changes(shapes, updates):
            yield from (add_change({name: before[name]}, change) for name in change)


def changes(shapes: Shapes, updates: Sequence[tuple[Mapping[str, Array], int, int]]) -> Iterator[Packed]:
    """What a round adds to the generalist before, float16, one tensor at a time in the order of the names."""
    for name in sorted(shapes):
        mean = Mean()
        for update, counted, weight in updates:
            if name in update:
                mean.add({name: update[name]}, weight, counted)
        yield mean.changes({name: np.broadcast_to(np.float32(0), shapes[name])})
