"""Texts of others, made harmless for a terminal and a log."""

from __future__ import annotations

import re

_MOVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with an escape (\x1b, \u202e) in place of whatever moves a cursor, turns a line round or cannot be seen.

    For a name: it stays on one line.
    """
    return "".join(mark if mark.isprintable() else _escape(mark) for mark in text)


def readable(text: str) -> str:
    r"""Prose with an escape in place of what moves a cursor, turns a line round or is no character.

    Line ends and tabs stay, and what other scripts need: joiners, wide spaces, directions of a word.
    """
    return _MOVES.sub(lambda match: _escape(match[0]), text)


def well_formed(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, and for each byte that was not UTF-8: no file takes those."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _escape(mark: str) -> str:
    return mark.encode("unicode_escape").decode()
