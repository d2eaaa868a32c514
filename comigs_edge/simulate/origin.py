"""Which code a record is of."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from comigs_edge.errors import ComigsError

CHECKOUT = Path(__file__).parents[2]
DIRTY = "-dirty"
ELSEWHERE = (":!tests", ":!benchmarks/mutants", ":!benchmarks/results")  # where nothing decides a figure


def commit() -> str:
    """The checkout's commit, with "-dirty" and a digest behind it where code differs from it; empty without a checkout or git."""
    if not (CHECKOUT / ".git").exists():
        return ""
    try:
        head = _git("describe", "--always", "--abbrev=12", "--exclude=*").decode().strip()
        differences = _differences()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}{DIRTY}-{hashlib.sha256(differences).hexdigest()[:8]}" if differences else head


def frozen_commit() -> str:
    """The commit that a judgement is of, empty without a checkout or git; raises `ComigsError` where code differs from it."""
    head, is_dirty, _ = commit().partition(DIRTY)
    if is_dirty:
        raise ComigsError(f"what judges is of one commit, and files differ from {head}; commit all changes first")
    return head


def _differences() -> bytes:
    """Code that is not as the commit has it, what git does not know yet with it."""
    changed = _git("diff", "HEAD", "--", "*.py", "*.toml", "*.txt", *ELSEWHERE)
    # A new *.txt may be somebody's text.
    new = _git("ls-files", "--others", "--exclude-standard", "-z", "--", "*.py", "*.toml", *ELSEWHERE).split(b"\0")
    return changed + b"".join(name + b"\0" + (CHECKOUT / name.decode()).read_bytes() for name in new if name)


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=CHECKOUT, capture_output=True, check=True).stdout
