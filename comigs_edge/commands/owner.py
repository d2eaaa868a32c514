"""Whose messages are learned: asked once, on a terminal, with the names that were found; remembered in the home."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import typer

from comigs_edge import files
from comigs_edge.data.conversation import name_key
from comigs_edge.errors import ComigsError
from coordinator.protocol.text import printable

_SHOWN = 12


def asker(path: Path, paths: list[Path], before: Callable[[], None]) -> Callable[[Counter[str]], Iterable[str]]:
    """What `documents.read` asks with: answers from `path` if a name there is among those found; calls `before` asking."""

    def ask(names: Counter[str]) -> Iterable[str]:
        known = remembered(path)
        if set(map(name_key, known)) & set(map(name_key, names)):
            return known
        shown = [printable(name) for name, _ in names.most_common(_SHOWN)]
        if sys.stdin is None or not sys.stdin.isatty():
            command = f"comigs-edge data add --me {shlex.quote(shown[0])} {shlex.join(map(str, paths))}"
            raise ComigsError(
                f"there are conversations of {_listed(shown, len(names))}; say which is you, so that your messages are learned, "
                f"like this: {printable(command)} (--me '' reads them as plain text)"
            )
        before()
        typer.echo(f"There are conversations of {_listed(shown, len(names))}.")
        answer = str(typer.prompt("Which is you (nothing: none of them)", default="", show_default=False)).strip()
        return [answer] if answer else []

    return ask


def _listed(shown: list[str], count: int) -> str:
    return ", ".join(shown) + (f" and {count - len(shown)} others" if count > len(shown) else "")


def remembered(path: Path) -> list[str]:
    """The names that were given before."""
    try:
        names = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def remember(path: Path, names: Iterable[str], authors: Collection[str]) -> None:
    """Keeps names for the next time; one of the `authors` (as `name_key`) who was named before and is not now was another."""
    before, now = remembered(path), list(filter(None, names))
    kept = [name for name in before if not now or name_key(name) not in authors]
    every = list({name_key(name): name for name in [*kept, *now]}.values())
    if every != before:
        files.write_atomic(path, json.dumps(every, ensure_ascii=False).encode("utf-8", "replace"))
