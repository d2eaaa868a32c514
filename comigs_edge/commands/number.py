"""A number of a list, as it is typed."""

from __future__ import annotations

import re

import typer

_SHOWN = 9  # numbers of a range that are written out


def number(text: str) -> int:
    """The number; a range is refused with the numbers to type in its place."""
    refuse_range(text)
    if not text.isdecimal():
        raise typer.BadParameter(f"{text} is not a number of the list")
    return int(text)


def refuse_range(text: str) -> None:
    """Raises where somebody means all numbers from one to another."""
    if found := re.fullmatch(r"(\d{1,9})(?:-|\.\.|:)(\d{1,9})", text):
        first, last = map(int, found.groups())
        each = [*range(first, last + 1)]
        shown = " ".join(map(str, each[:_SHOWN])) + (f" ... {last}" if len(each) > _SHOWN else "")
        raise typer.BadParameter(f"{text} is no number, and ranges are not read; name each one: {shown or f'{last} {first}'}")
