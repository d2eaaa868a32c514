"""How requests are refused: an HTTP status, a word for programs and a sentence for people."""

from __future__ import annotations


class CoordinatorError(Exception):
    """An error that the operator can mend; the text is one sentence, shown without a traceback."""


class WireError(Exception):
    """Bytes that are not acceptable arrays; the text is one sentence."""


class Refused(Exception):
    """A request that is not granted; a device prints `message`."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after
