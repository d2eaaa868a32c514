"""How fast this device multiplies and reads, in half a second and without torch: for estimates, `rates.py` measures for plans."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

SECONDS = 0.2  # for each
NUMBERS = 1 << 23  # float32, that each thread reads: more than caches hold


class Speed(NamedTuple):
    """Of this device's processor."""

    products: float  # FLOP/s of products in float32
    reading: float  # bytes a second that all threads read of memory


def measure_speed(threads: int) -> Speed:
    """The best rates that were seen; other programs make them lower."""
    x, weight = np.ones((256, 1024), np.float32), np.ones((1024, 2048), np.float32)
    out = np.empty((256, 2048), np.float32)
    products = 2 * x.size * weight.shape[1] / _shortest(lambda: np.matmul(x, weight, out=out))
    arrays = [np.ones(NUMBERS, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        reading = sum(each.nbytes for each in arrays) / _shortest(lambda: list(pool.map(np.sum, arrays)))
    return Speed(products, reading)


def _shortest(action: Callable[[], object]) -> float:
    """Seconds of the action, the shortest of as many as fit in the time."""
    action()  # what comes first is slower
    times: list[float] = []
    while sum(times) < SECONDS:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)
