"""Texts of others, made harmless for a terminal and a log."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text with an escape (\x1b, \u202e) in place of whatever moves a cursor, turns a line round or cannot be seen."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)
