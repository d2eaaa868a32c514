"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # done, of how many: bytes, rows, steps
SILENT: Progress = lambda done, total: None  # noqa: E731


def count_up(progress: Progress, total: int) -> Callable[[int], None]:
    """What receives how much was just done, and passes on how much is done of `total`."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return advance
