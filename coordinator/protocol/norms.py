"""How far one update can move the mean: its norm counts up to 1.5 times the median, as a smaller weight above the fraction bar.

    c  = 1.5 x median of the norms of the round; where fewer than 5 are in, of what counted in the last 5 rounds, too
    w' = floor(w min(1, c / norm))          mean = sum of w' x update / sum of w

A round whose norms are alike keeps its bits: w' = w. Two devices alone hold half of every median each, so neither can be told
from the other: sending huge updates one moves the mean by at most 3 of the other's norms a round, and sending tiny ones from
the very first round it holds the other back. From three on, one of them moves c within 1.5 times what the others send.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

FACTOR = 1.5
FEW = 5  # updates of one round, of which a median says something
ROUNDS = 5  # before, that are looked at where few are in
SCALE = 1 << 24
PIECE = 1 << 16  # numbers that are converted at once


def l2_norm(arrays: Iterable[npt.NDArray[np.float32]]) -> float:
    """L2 norm of all numbers together, |x| <= 64, as fixed-point integers: the same bits on every machine and in any order."""
    total, numbers, upper = 0, np.empty(PIECE), np.empty(PIECE)  # used again and again: fresh memory is slow
    for array in arrays:
        flat = array.reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = flat[start : start + PIECE]
            low, high = numbers[: piece.size], upper[: piece.size]
            np.rint(np.multiply(piece, SCALE, out=low, dtype=np.float64), out=low)
            np.rint(np.multiply(low, 2.0**-16, out=high), out=high)
            high *= 2.0**16
            low -= high  # |high| <= 2^30 in steps of 2^16, |low| <= 2^15: each sum of products is exact as float64
            total += int(high @ high) + 2 * int(high @ low) + int(low @ low)
    return math.sqrt(total) / SCALE


def limit(norms: Sequence[float], before: Sequence[float]) -> float | None:
    """The norm up to which an update counts in full; None where nothing is known. `before`: what counted in the last rounds.

    Updates of zeros say nothing. Without rounds before, the lower of two in the middle is taken, so that the first to be huge
    does not set the measure; with them, c is at least the upper one, so that tiny ones do not shrink it round by round.
    """
    known = [norm for norm in (*norms, *(before if len(norms) < FEW else ())) if norm > 0]
    if not known:
        return None
    if not any(before):
        return FACTOR * statistics.median_low(known)
    return max(FACTOR * statistics.median(known), statistics.median_high(known))


def bounded(weight: int, norm: float | None, largest: float | None) -> int:
    """The weight above the fraction bar of an update with this norm; None of either bounds nothing."""
    if norm is None or largest is None or norm <= largest:
        return weight
    return math.floor(weight * (largest / norm))
