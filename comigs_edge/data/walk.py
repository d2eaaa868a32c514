"""Which files lie in the folders that somebody named."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What programs put there, and nobody reads as a note.
MACHINES = {"node_modules", "bower_components", "__pycache__", "site-packages", "venv", "__MACOSX"}


@dataclass
class Walk:
    """What was met on the way and not gone into."""

    folders: Counter[str] = field(default_factory=Counter)  # by name
    closed: list[tuple[Path, str]] = field(default_factory=list)  # folders and files that could not be entered, and why


def files_below(folder: Path, walk: Walk) -> list[Path]:
    """The ordinary files below a folder, sorted; symbolic links are followed, each folder is entered once."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    above = folder.resolve().parents
    folders, links = [folder], list[Path]()
    while folders or links:  # linked ones last: what has a place of its own is found there
        here = folders.pop() if folders else links.pop()
        try:
            if here.is_symlink() and here.resolve() in above:
                raise OSError("a link to a folder above")
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            walk.closed.append((here, error.strerror or str(error)))
            continue
        for entry in entries:
            if _is_passed_over(entry):
                walk.folders.update([entry.name] if _is_folder(entry) else [])
            elif _is_folder(entry):
                (links if entry.is_symlink() else folders).append(Path(entry.path))
            else:
                found.append(Path(entry.path))
    return sorted(_ordinary(found, walk))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_passed_over(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith(".") or entry.name in MACHINES:
        return True
    return _is_folder(entry) and os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))


def _ordinary(paths: list[Path], walk: Walk) -> Iterator[Path]:
    for path in paths:
        reason = not_ordinary(path)
        if reason:
            walk.closed.append((path, reason))
        else:
            yield path


def not_ordinary(path: Path) -> str:
    """Why a path is no file that can be read ("": it is one); a pipe would be waited for."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return error.strerror or str(error)
    return "" if stat.S_ISREG(mode) else "no ordinary file"
