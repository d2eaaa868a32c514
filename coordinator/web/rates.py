"""Token buckets: a limit on requests per key."""

from __future__ import annotations

from coordinator.protocol.errors import Refused

MAX_KEYS = 10_000


class Buckets:
    """One bucket for each key: `burst` requests at once, `rate` a second in the long run."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._left: dict[str, tuple[float, float]] = {}  # key -> requests left, when

    def take(self, key: str, now: float) -> None:
        """Takes one token; raises `Refused` (429) if none is left. `now` is monotonic, in seconds."""
        self.check(key, now)
        left = self._at(key, now) - 1
        self._left.pop(key, None)
        self._left[key] = (left, now)
        while len(self._left) > MAX_KEYS:  # the key that was used the longest time ago
            del self._left[next(iter(self._left))]

    def check(self, key: str, now: float) -> None:
        """Raises `Refused` (429) if no token is left; takes none."""
        left = self._at(key, now)
        if left < 1:
            wait = max(1.0, (1 - left) / self.rate)
            raise Refused(429, "too_often", f"too many requests; come again in {wait:.0f} seconds", retry_after=wait)

    def _at(self, key: str, now: float) -> float:
        left, at = self._left.get(key, (self.burst, now))
        return min(self.burst, left + (now - at) * self.rate)
