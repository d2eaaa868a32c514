"""Prometheus' text format: requests of this process, and the fleet's sums."""

from __future__ import annotations

from coordinator.fleet import Fleet


class Metrics:
    """Counts requests; `render` adds the fleet."""

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered."""

    def render(self, fleet: Fleet, started: float, version: str) -> str:
        """The text."""
        return ""
