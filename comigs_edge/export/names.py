"""Which files of the folder `models/` were exported, and of which version. Without torch."""

from __future__ import annotations

import re
from pathlib import Path

from comigs_edge.home.folder import Home
from comigs_edge.home.versions import versions

KEPT_EXPORTS = 3  # of the last versions; one is as large as the base
_NAME = re.compile(r"personal-(?P<version>\d{4})-(?:hot-F(?:16|32)-(?:generalist|specialists)|(?P<format>[A-Z0-9_]+))\.gguf")


def exports_of(home: Home, version: int) -> list[Path]:
    """The files that hold a version and are named so."""
    return sorted(path for path, name in exports(home) if int(name["version"]) == version)


def remove_old(home: Home, newest: int) -> None:
    """Deletes the exports of all but the last versions, and of those that are not kept any more."""
    kept = {version for version in versions(home.adapters) if version > newest - KEPT_EXPORTS}
    for path, name in exports(home):
        if int(name["version"]) not in kept:
            path.unlink()


def exports(home: Home) -> list[tuple[Path, re.Match[str]]]:
    """The files that an export names, with the parts of their names; all others in the folder are the user's."""
    return [(path, name) for path in home.models.glob("personal-*.gguf") if (name := _NAME.fullmatch(path.name))]
