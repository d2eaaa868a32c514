"""`comigs-edge forget`: a file goes, and what was learned from it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comigs_edge.commands.console import counted, next_command, notes, out, warn
from comigs_edge.commands.data import find_numbers
from comigs_edge.commands.settings import settings_of
from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home.folder import Home
from coordinator.protocol.text import printable

if TYPE_CHECKING:
    from comigs_edge.training.learned import Remains


def forget(
    files: Annotated[
        list[str], typer.Argument(metavar="ID|FILE...", help="Numbers of files, from `data list`, or their folder.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove files and what was learned from them: the model goes back to what it was before it saw them."""
    from comigs_edge.training.learned import delete_remains, find_remains
    from comigs_edge.training.next_step import find_next

    home = homes.locate()
    settings = settings_of(home)
    corpus = homes.corpus(home, settings)
    with home.lock("forget"):
        numbers = list(dict.fromkeys(number for each in files for number in find_numbers(corpus, each)))
        sources = {each["id"]: each for each in corpus.sources()}
        if unknown := [number for number in numbers if number not in sources]:
            raise ComigsError(f"there is no file number {unknown[0]}; see: comigs-edge data list")
        remains = find_remains(home, corpus, numbers)
        for number in numbers:
            out.print(f"{number}  {printable(sources[number]['path'])}", soft_wrap=True)
        for path, count in corpus.elsewhere(numbers).items():
            also = f"{path} has {counted(count, 'document')} of that as well"
            warn(f"{also}; to forget it, too: comigs-edge forget {shlex.quote(path)}")
        for line in (*_cost(home, remains), *_beyond_recall(home, [sources[number] for number in numbers])):
            out.print(line, soft_wrap=True)
        _agree(yes)
        folders = [Path(each).expanduser().absolute() for each in files if not each.isdecimal()]
        corpus.remove(*numbers, folders=folders, stays_out=True)
        delete_remains(home, remains)
    out.print(f"forgotten; deleted: {remains}" if remains else "forgotten; nothing that is kept had learned it", soft_wrap=True)
    next_command(find_next(home, settings))


def _cost(home: Home, remains: Remains) -> list[str]:
    """What becomes of the model."""
    from comigs_edge.home.versions import read_manifest, versions

    there = versions(home.adapters)
    if not remains:
        return ["nothing that is kept has learned it: the model stays as it is"]
    lines = [f"deleted with it: {remains}"]
    left = [version for version in there if version not in remains.versions]
    if not there or left == there:
        return lines
    if not left:
        steps = read_manifest(home.adapters, there[-1]).get("expert_steps", 0)
        again = f"comigs-edge train --fresh ({steps} steps was the last training), and until then the base answers"
        return [*lines, f"no version from before it is kept: the model begins anew without it, by {again}"]
    if left[-1] != there[-1]:
        before, now = (read_manifest(home.adapters, version).get("validation_loss") for version in (left[-1], there[-1]))
        losses = f" (validation loss {before:.4f}, now {now:.4f})" if before is not None and now is not None else ""
        lines.append(f"the model goes back to version {left[-1]:04d}{losses}; what it learned since from other text is lost, too")
    return lines


def _beyond_recall(home: Home, sources: Collection[dict[str, object]]) -> list[str]:
    """What no command on this device can take back."""
    from comigs_edge.fleet.folder import FleetFolder

    lines = [
        "the file itself stays where it is, and so do copies of exported models elsewhere; read again with its folder, edited or "
        "not, it stays forgotten, and so does a copy of it (back: comigs-edge data add --forgotten FILE)"
    ]
    folder = FleetFolder(home)
    if not folder.is_member and not folder.was_member:
        return lines
    if all(source["local"] for source in sources):
        return [*lines, "it is local: since it is, no generalist has learned of it"]
    return [
        *lines,
        "this device has been in a fleet: generalists that learned of it, and an update that waits to be brought, cannot be "
        "called back, and the next exchange brings such a generalist here again; specialists and router go back",
    ]


def _agree(yes: bool) -> None:
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise ComigsError("nothing was forgotten: there is nobody to ask; without a question: comigs-edge forget --yes ID")
    if not typer.confirm("Forget it?", err=True):
        notes.print("nothing was changed")
        raise typer.Exit(1)
