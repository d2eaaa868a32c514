"""What leaves this device and what has left it, in words: for `sync --dry-run`, `privacy` and `report`."""

from __future__ import annotations

from typing import Any

from comigs_edge.commands.console import counted, size


def by_occasion(leaves: list[dict[str, Any]]) -> dict[str, str]:
    """The list of everything that leaves: occasion -> what, in one line."""
    occasions: dict[str, list[str]] = {}
    for each in leaves:
        occasions.setdefault(each["occasion"], []).append(each["what"])
    return {occasion: "; ".join(things) for occasion, things in occasions.items()}


def what_left(left: list[dict[str, Any]]) -> list[str]:
    """What has left so far: a sentence for each fleet."""
    return [_said(each) for each in left]


def _said(left: dict[str, Any]) -> str:
    where = f"the fleet at {left['address'] or 'an address that cannot be read'}"
    last = f"{counted(len(left['receipts']), 'update')} of the last that counted"
    if left["receipts"]:
        rounds = sorted({each["round"] for each in left["receipts"]})
        last += f" (round {rounds[0]})" if len(rounds) == 1 else f" (rounds {rounds[0]} to {rounds[-1]})"
    gone = "" if left["is_present"] else ", which this device has left and which keeps what it has"
    return f"{size(left['bytes_sent'])} to {where}{gone}: {last}; {size(left['bytes_received'])} of generalists came back"
