"""How the command line shows tables, times and sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from coordinator.protocol.text import printable


def print_table(table: Sequence[tuple[object, ...]]) -> None:
    """Prints rows, the first is the heading, in columns."""
    rows = [[printable(str(cell)) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show_time(seconds: float) -> str:
    """Seconds since 1970 as this machine's date and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def show_size(count: float) -> str:
    """Bytes in megabytes."""
    return f"{count / 1e6:,.1f} MB"
