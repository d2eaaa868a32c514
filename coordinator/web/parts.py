"""Parts of the page: a tile, a table, and values in words."""

from __future__ import annotations

import time
from collections.abc import Iterable

from coordinator.web.tables import table


def tile(name: str, figure: str, note: str, is_bad: bool = False) -> str:
    """`figure` and `note` are HTML."""
    kind = "tile bad" if is_bad else "tile"
    return f'<div class="{kind}"><h2>{name}</h2><p class="figure">{figure}</p><p class="note">{note}</p></div>'


def listed(name: str, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table under its name; see `table`."""
    return f'<section class="table"><h2>{name}</h2>{table(heads, rows)}</section>'


def span(seconds: float) -> str:
    """A length of time in words, to its largest unit."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return count(int(seconds // size), unit)
    return count(max(0, int(seconds)), "second")


def ago(seconds: float, now: float) -> str:
    """How long ago a time was."""
    return "just now" if now - seconds < 5 else f"{span(now - seconds)} ago"


def moment(seconds: float, now: float) -> str:
    """The same as HTML that has the time too."""
    return f'<time datetime="{utc(seconds, "T", "Z")}" title="{utc(seconds)}">{ago(seconds, now)}</time>'


def utc(seconds: float, between: str = " ", zone: str = " UTC") -> str:
    """A time, seconds since 1970."""
    return time.strftime(f"%Y-%m-%d{between}%H:%M:%S{zone}", time.gmtime(seconds))


def count(number: int, what: str) -> str:
    """1 device, 2 devices."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def size(number: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}" if unit != "B" else f"{number:.0f} B"
        number /= 1000
    return f"{number:,.1f} GB"


def loss(value: float | None) -> str:
    """A loss; a dash where nobody reports one."""
    return "–" if value is None else f"{value:.4f}"


def or_dash(value: object) -> str:
    """A dash for None."""
    return "–" if value is None else str(value)
