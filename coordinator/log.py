"""The coordinator's log: a line for what happened, harmless to a terminal, and bounded whatever strangers do."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TextIO

from coordinator.protocol.text import printable

WARNINGS = 20  # of one kind ...
SECONDS = 600.0  # ... in so many seconds


class Sparing(logging.Filter):
    """Lets a few warnings of a kind through, and at the next time says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[str] = Counter()
        self._since = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this record is written."""
        if record.levelno < logging.WARNING:
            return True
        now = time.monotonic()
        if now - self._since > SECONDS:
            left = sum(max(0, count - WARNINGS) for count in self._counts.values())
            self._counts, self._since = Counter(), now
            if left:
                logging.getLogger("comigs-coordinator").info("%d more warnings were left out", left)
        kind = f"{record.name} {record.msg}"[:100]
        if len(self._counts) < 1000 or kind in self._counts:
            self._counts[kind] += 1
            return self._counts[kind] <= WARNINGS
        return False


class Harmless(logging.Formatter):
    """Lines in which texts of others cannot steer a terminal; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        message = printable(record.getMessage())
        traceback = self.formatException(record.exc_info) if record.exc_info else ""
        lines = [f"{self.formatTime(record)} {message}", *map(printable, traceback.splitlines())]
        return "\n".join(lines)


def start_log(stream: TextIO) -> None:
    """Everything that this process logs goes there."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(Sparing())
    handler.setFormatter(Harmless())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
