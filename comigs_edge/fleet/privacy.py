"""Who can learn what of this device as it is now, and what has left it so far: for `privacy` and the receipt of `report`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.held import HeldWindows
from comigs_edge.fleet.leaving import leaving, staying, who_reads
from comigs_edge.fleet.lookers import in_the_clear, lookers
from comigs_edge.fleet.membership import Membership, said
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from coordinator.protocol.private.cohort import Distrust, threshold
from coordinator.protocol.private.messages import LEAST, MOST

Mode = Literal["no fleet", "fleet", "private fleet", "FLARE"]
EXAMPLES = (3, 5, 10, 50)  # devices of a window, for which the threshold is told


def privacy(home: Home, settings: Config) -> dict[str, Any]:
    """The facts, as JSON; raises `ComigsError` where nobody knows which fleet this device is in."""
    folder, reports_loss = FleetFolder(home), settings.fleet.report_loss
    member = folder.membership() if folder.is_member else None
    mode = _mode(home, member)
    is_private = mode == "private fleet"
    return {
        "mode": mode, "fleet": member and {"name": member.name, "address": member.address, "id": member.fleet},
        "who_reads": member and who_reads(is_private, bool(member.roster_key)),
        "roster_key": member.roster_key if member and is_private else None,
        "who": lookers(
            is_member=member is not None, is_private=is_private, is_on_flare=mode == "FLARE",
            has_roster=bool(member and member.roster_key),
        ),
        "sums": _sums(folder, member) if member and is_private else None,
        "in_the_clear": in_the_clear(is_private) if member else [],
        "leaves": leaving(reports_loss, is_private) if member else [], "stays": list(staying(reports_loss)),
        "troubles": [said for said in (folder.heard.trouble, folder.heard.kept_out) if said] if member else [],
        "left": left(folder), "notes": folder.notes,
    }  # fmt: skip


def _mode(home: Home, member: Membership | None) -> Mode:
    """A fleet that has been on FLARE may go there again: then its home has FLARE's folder."""
    if member is None:
        return "no fleet"
    if member.is_private:
        return "private fleet"
    return "fleet" if member.address and not (home.root / "flare").exists() else "FLARE"


def _sums(folder: FleetFolder, member: Membership) -> dict[str, Any]:
    """How many devices a sum holds: at all events, and in the windows that this device has shared its secrets in."""
    return {
        "least": LEAST,
        "most": MOST,
        "threshold": {str(devices): threshold(devices) for devices in EXAMPLES},
        "windows": list(_windows(folder, member.signing_key)),
    }


def _windows(folder: FleetFolder, signing_key: str) -> Iterator[dict[str, Any]]:
    held = HeldWindows(folder.windows)
    for each in filter(None, map(held.find, sorted(path.stem for path in folder.windows.glob("[!.]*.json")))):
        with suppress(Distrust):  # it has not shared there, or the file is damaged
            cohort = each.read_cohort(signing_key)
            yield {
                "window": each.window, "devices": len(cohort.devices), "threshold": cohort.threshold, "least": cohort.needed,
                "sends": bool(each.update_id), "has_answered": bool(each.answer),
            }  # fmt: skip


def left(folder: FleetFolder) -> list[dict[str, Any]]:
    """What has left this device so far, by fleet, the present one first; receipts are of the last updates that counted."""
    found = []
    for each in folder.all_books():
        standing = each.standing()
        found.append({
            **{name: next(iter(said(each.root, name)), None) for name in ("name", "address")},
            "is_present": each.root == folder.root,
            "bytes_sent": standing.bytes_sent, "bytes_received": standing.bytes_received,
            "receipts": [{"update": update, "round": number} for update, number in standing.brought.items()],
        })  # fmt: skip
    return found
