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
MAX_ABSOLUTE = 64.0  # of a number in an update
PIECE = 1 << 18  # numbers that are converted at once: temporaries stay small


class Mean:
    """A running weighted mean over updates; every tensor has its own total weight, for not every update holds every tensor."""

    def __init__(self) -> None:
        self._sums: dict[str, npt.NDArray[np.int64]] = {}
        self._weights: dict[str, int] = {}

    def add(self, update: Arrays, weight: int) -> None:
        """Counts one device's update; raises `ValueError` for a number or a weight that could overflow."""
        if not 1 <= weight <= 1 << 16:
            raise ValueError(f"a weight of {weight} is not between 1 and {1 << 16}")
        for name, array in update.items():
            flat = array.reshape(-1)
            total = self._sums.setdefault(name, np.zeros(flat.size, np.int64))
            for start in range(0, flat.size, PIECE):
                piece = flat[start : start + PIECE].astype(np.float64)
                if not (np.abs(piece) <= MAX_ABSOLUTE).all():
                    raise ValueError(f"{name} holds numbers beyond {MAX_ABSOLUTE}")
                total[start : start + PIECE] += np.rint(piece * SCALE).astype(np.int64) * weight
            self._weights[name] = self._weights.get(name, 0) + weight

    def apply(self, before: Arrays) -> Arrays:
        """`before` plus the mean change of each tensor; tensors that no update holds stay as they are. float32."""
        return {
            name: (array + self._mean(name).reshape(array.shape)).astype(np.float32)
            if name in self._sums
            else array.astype(np.float32)
            for name, array in before.items()
        }

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
    """The next generalist, float32: the same bits wherever it is computed."""
    return {name: array + change[name].astype(np.float32) for name, array in before.items()}
