"""The status page."""

from coordinator.fleet import Fleet

HEADERS = {"Cache-Control": "no-store"}


def render(fleet: Fleet, started: float, version: str) -> str:
    """HTML."""
    return ""
