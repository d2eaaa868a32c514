"""What `data add` says of what looks like secrets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comigs_edge.commands.console import counted
from comigs_edge.data.secrets import Found
from coordinator.protocol.text import printable

_SHOWN = 5  # files that are named one by one


def secret_lines(found: Found) -> Iterator[str]:
    """Where they are, and what becomes of them."""
    if found.left_out:
        holds = "holds" if found.left_out == 1 else "hold"
        yield f"left out {counted(found.left_out, 'document')} that {holds} what looks like a secret: {_places(found, True)}"
    if learned := _places(found, False):
        then = "comigs-edge data add --without-secrets PATH"
        yield f"what looks like secrets will be learned: {learned}; to leave that out: {then}"


def as_table(found: Found) -> dict[str, Any]:
    """The same for a program."""
    return {"secrets": {str(path): dict(kinds) for path, kinds in found.secrets.items()}, "left_out_for_secrets": found.left_out}


def _places(found: Found, left_out: bool) -> str:
    files = [
        f"{', '.join(counted(count, kind) for kind, count in kinds.items())} in {printable(path.name)}"
        for path, kinds in found.secrets.items()
        if (path in found.mended) == left_out
    ]
    more = f" and {counted(len(files) - _SHOWN, 'more file')}" if len(files) > _SHOWN else ""
    return "; ".join(files[:_SHOWN]) + more
