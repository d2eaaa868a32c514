"""Where a generalist stands with its fleet; kept with it, in checkpoints and with adapters."""

from __future__ import annotations

from typing import Any, NamedTuple


class Mark(NamedTuple):
    """What the fleet's books said when this generalist was last exchanged, and what it has learned that no update brought."""

    word: str | None = None  # `Books.mark`; None: it was never in a fleet
    tokens: int | None = 0  # trained on since the last update; None: an earlier version did not count them

    def add(self, tokens: int) -> Mark:
        """After so many tokens more."""
        return self._replace(tokens=(self.tokens or 0) + tokens)

    def facts(self, prefix: str = "fleet") -> dict[str, Any]:
        """For a file's JSON."""
        return {f"{prefix}_mark": self.word, f"{prefix}_tokens": self.tokens}


def read_mark(facts: dict[str, Any], prefix: str = "fleet") -> Mark:
    """The reverse of `Mark.facts`."""
    return Mark(facts.get(f"{prefix}_mark"), facts.get(f"{prefix}_tokens"))
