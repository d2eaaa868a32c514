"""Types of the command line's options: what a person typed becomes a value, or wrong usage in one sentence."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from coordinator.protocol import settings
from coordinator.protocol.messages import MAX_INTEGER, NAME_PATTERN
from coordinator.protocol.settings import SettingsError

MOST_ROUNDS = 100_000  # shown at once: a year's, if one closes every five minutes


def count(text: str) -> int:
    """How many of something to show."""
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= MOST_ROUNDS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be a whole number between 1 and {MOST_ROUNDS}")
    return int(text)


def number(text: str) -> int:
    """Of a roster."""
    if not re.fullmatch("[0-9]{1,16}", text) or not 1 <= int(text) <= MAX_INTEGER:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be a whole number between 1 and {MAX_INTEGER}")
    return int(text)


def device(text: str) -> str:
    """A device's name or id."""
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no device's name; list them with: comigs-coordinator devices")
    return text


def folder(text: str) -> Path:
    """A folder; an empty text, as of a shell's variable that is not set, is none."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no folder")
    return Path(text)


def file(text: str) -> Path:
    """A file; an empty text is none."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no file")
    return Path(text)


def flag(section: type, name: str, default: object) -> dict[str, Any]:
    """What argparse is told of a setting's flag: two words for what is true or false, otherwise a value within its bounds."""
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction}
    return {"type": setting(section, name), "metavar": type(default).__name__.upper()}


def setting(section: type, name: str) -> Callable[[str], Any]:
    """The type of a setting's flag, with the bounds that it has in config.toml."""
    hint = get_type_hints(section, include_extras=True)[name]

    def read(text: str) -> Any:
        try:
            return settings.convert(text, hint, name, strict=False)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
