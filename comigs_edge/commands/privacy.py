"""`comigs-edge privacy`: who can learn what of this device, as it is now."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from comigs_edge.commands.console import fact, next_command, out, print_json, show_table, warn
from comigs_edge.commands.receipt import by_occasion, what_left
from comigs_edge.commands.settings import settings_of
from comigs_edge.home import folder as homes
from coordinator.protocol.text import printable

MODES = {
    "no fleet": "this device is in no fleet: nothing is sent to one",
    "fleet": "a fleet whose coordinator reads single updates",
    "private fleet": "a private fleet: updates go into sums",
    "FLARE": "a fleet that NVIDIA FLARE carries, or has carried; its server reads single updates",
}
FLARE = (
    "NVIDIA FLARE's client sends what it needs of its own, such as the site's name and certificate; the list is of what "
    "comigs-edge gives to it, and of what goes to a coordinator without it"
)


def privacy(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show who can learn what of this device as it is now: what leaves it, what stays, what is in the clear, what has left."""
    from comigs_edge.fleet import privacy as facts_of

    home = homes.locate()
    facts = facts_of.privacy(home, settings_of(home))
    if json:
        print_json(facts)
        return
    for note in (*facts["notes"], *facts["troubles"]):
        warn(note)
    _show(facts)
    next_command("comigs-edge sync --dry-run" if facts["fleet"] else "comigs-edge status")


def _show(facts: dict[str, Any]) -> None:
    fact("mode", MODES[facts["mode"]], 10)
    if fleet := facts["fleet"]:
        fact("fleet", f"{printable(fleet['address']) or 'no address'}, as {printable(fleet['name'])}", 10)
        fact("reads it", facts["who_reads"], 10)
    if facts["roster_key"] is not None:
        fact("roster", f"signed by {facts['roster_key']}" if facts["roster_key"] else "none: whoever the coordinator names", 10)
    if sums := facts["sums"]:
        for number, line in enumerate(_sums(sums)):
            fact("" if number else "sums", line, 10)
    for number, line in enumerate(what_left(facts["left"]) or ["nothing, to any fleet"]):
        fact("" if number else "has left", printable(line), 10)
    fact("stays", ", ".join(facts["stays"]), 10)
    show_table(("who looks", "can learn"), [(each["who"], each["learns"]) for each in facts["who"]], long="can learn")
    if facts["fleet"]:
        out.print("in the clear for the coordinator, whatever is masked:")
        for line in facts["in_the_clear"]:
            out.print(f"  {line}", soft_wrap=True)
        out.print("everything that ever leaves this device, by occasion:")
        for occasion, things in by_occasion(facts["leaves"]).items():
            out.print(f"  {occasion + ':':<17} {things}", soft_wrap=True)
    if facts["mode"] == "FLARE":
        out.print(FLARE, soft_wrap=True)
    out.print("nobody has audited this; all of it, with its limits: docs/privacy.md", soft_wrap=True)


def _sums(sums: dict[str, Any]) -> list[str]:
    """How many devices a sum holds, in words."""
    shares = ", ".join(f"{threshold} of {devices}" for devices, threshold in sums["threshold"].items())
    lines = [f"of {sums['least']} to {sums['most']} devices' updates, and opened by more than two thirds of a window: {shares}"]
    lines += [
        f"window {each['window'][:8]}, on its way: n = {each['devices']} devices, t = {each['threshold']} of them open its sum, "
        f"which holds {each['least']} updates or more"
        for each in sums["windows"]
    ]
    return lines if sums["windows"] else [*lines, "no window is on its way in which this device has given its shares"]
