"""The weighted mean of updates, in fixed-point integers: bit-identical in any order and after any crash.

A number x counts as round(x 2^28) and a weight as an integer up to 2^16, so that sums stay exact in 64 bits for 1,024
devices and |x| <= 64. One running sum is held, however many devices report.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from coordinator.protocol.wire import Arrays, Packed

SCALE = 1 << 28
MAX_ABSOLUTE = 64.0  # of a number in an update, and in a generalist
PIECE = 1 << 16  # numbers that are converted at once: temporaries stay small


class Mean:
    """A running weighted mean over updates; every tensor has its own total weight, for not every update holds every tensor."""

    def __init__(self) -> None:
        self._sums: dict[str, npt.NDArray[np.int64]] = {}
        self._weights: dict[str, int] = {}
        self._rounded, self._numbers = np.empty(PIECE), np.empty(PIECE, np.int64)  # used again: fresh memory is slow

    def add(self, update: Arrays, weight: int, counted: int | None = None) -> None:
        """Counts one device's update; raises `ValueError` for a number or a weight that could overflow.

        `counted`, at most `weight`, is what it has above the fraction bar where its norm is bounded.
        """
        counted = weight if counted is None else counted
        if not 1 <= weight <= 1 << 16 or not 0 <= counted <= weight:
            raise ValueError(f"a weight of {weight} is not between 1 and {1 << 16}, or {counted} of it are counted")
        for name, array in update.items():
            flat = array.reshape(-1)
            total = self._sums.setdefault(name, np.zeros(flat.size, np.int64))
            for start in range(0, flat.size, PIECE):
                piece = flat[start : start + PIECE]
                if not -MAX_ABSOLUTE <= piece.min() <= piece.max() <= MAX_ABSOLUTE:
                    raise ValueError(f"{name} holds numbers beyond {MAX_ABSOLUTE}")
                rounded, numbers = self._rounded[: piece.size], self._numbers[: piece.size]
                np.rint(np.multiply(piece, SCALE, out=rounded, dtype=np.float64), out=rounded)
                np.copyto(numbers, rounded, casting="unsafe")
                numbers *= counted
                total[start : start + PIECE] += numbers
            self._weights[name] = self._weights.get(name, 0) + weight

    def apply(self, before: Arrays) -> Arrays:
        """`before` plus the mean change of each tensor, float32; no number is beyond `MAX_ABSOLUTE`.

        Tensors that no update holds stay as they are.
        """
        after = {
            name: array + self._mean(name).reshape(array.shape) if name in self._sums else array for name, array in before.items()
        }
        return {name: np.clip(array, -MAX_ABSOLUTE, MAX_ABSOLUTE).astype(np.float32) for name, array in after.items()}

    def changes(self, before: Arrays) -> Packed:
        """The mean change of each tensor of `before`, rounded to float16; zero where no update holds it."""
        return {
            name: (self._mean(name) if name in self._sums else np.zeros(array.size)).astype(np.float16).reshape(array.shape)
            for name, array in before.items()
        }

    def _mean(self, name: str) -> npt.NDArray[np.float64]:
        return self._sums[name] / (float(SCALE) * self._weights[name])


def aggregate(before: Arrays, updates: Iterable[tuple[Arrays, int]]) -> Arrays:
    """`before` plus the weighted mean of the devices' changes, not rounded: the first generalist, for one."""
    mean = Mean()
    for update, weight in updates:
        mean.add(update, weight)
    return mean.apply(before)


def mean_change(before: Arrays, updates: Iterable[tuple[Arrays, int]]) -> Packed:
    """What a round changes, as it is published: the weighted mean of the changes as float16, half the bytes of a generalist."""
    mean = Mean()
    for update, weight in updates:
        mean.add(update, weight)
    return mean.changes(before)


def add_change(before: Arrays, change: Packed) -> Arrays:
    """The next generalist, float32: the same bits wherever it is computed; no number is beyond `MAX_ABSOLUTE`."""
    after = {name: array + change[name].astype(np.float32) for name, array in before.items()}
    return {name: np.clip(array, np.float32(-MAX_ABSOLUTE), np.float32(MAX_ABSOLUTE)) for name, array in after.items()}
