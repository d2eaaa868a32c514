"""Which code a record is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

from comigs_edge.errors import ComigsError

CHECKOUT = Path(__file__).parents[2]


def commit() -> str:
    """The checkout's commit, with "-dirty" behind it where files differ from it; empty without a checkout or git."""
    if not (CHECKOUT / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def frozen_commit() -> str:
    """The commit that a judgement is of, empty without a checkout or git; raises `ComigsError` where files differ from it."""
    found = commit()
    if found.endswith("-dirty"):
        raise ComigsError(f"what judges is of one commit, and files differ from {found[:-6]}; commit all changes first")
    return found
