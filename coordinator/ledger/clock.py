"""A clock that does not jump: the system's is set by people and by NTP, on boards without a battery by decades."""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_SECONDS = 5.0  # by which the system's clock must be off before it is followed


def since_boot() -> float:
    """Seconds, those of sleep included, that nobody can set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Seconds since 1970, steady until `step` is called."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = since_boot) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()

    def __call__(self) -> float:
        """Now."""
        return self._offset + self._steady()

    def step(self) -> float:
        """Follows the system's clock where that was set; returns by how many seconds, 0 for none."""
        step = self._wall() - self()
        if abs(step) < STEP_SECONDS:
            return 0.0
        self._offset += step
        return step
