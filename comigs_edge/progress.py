"""How long-running work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # done, of how many: bytes, rows, steps
Advance = Callable[[int], None]  # what was just done: bytes, tokens, steps
SILENT: Progress = lambda done, total: None  # noqa: E731


def count_up(progress: Progress, total: int) -> Advance:
    """What receives how much was just done, and passes on how much is done of `total`."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return advance
