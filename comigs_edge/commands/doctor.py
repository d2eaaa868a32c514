"""`comigs-edge doctor`: what this device is, what hinders it, and what to do about that."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from comigs_edge.commands.console import fact, next_command, print_json
from comigs_edge.commands.service import find_outdated
from comigs_edge.home import folder as homes
from coordinator.protocol.text import printable
from profiles.detect import Device, detect

if TYPE_CHECKING:
    from comigs_edge.planning.doctor import Finding

COLOURS = {"good": "green", "note": "blue", "poor": "yellow", "bad": "red"}


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Look at this device and say what would hinder training and chat. Exit code 1 if something is bad."""
    from comigs_edge.planning.doctor import conditions, findings, offload, versions

    home = homes.locate()
    folder = next(path for path in [home.root, *home.root.parents] if path.exists())
    device, installed = detect(folder=str(folder)), versions()
    here = replace(conditions(folder, home.written), offload=offload(device), service=find_outdated())
    verdicts = findings(device, here, installed)
    if json:
        print_json({
            "device": asdict(device), "conditions": asdict(here), "versions": installed,
            "findings": [asdict(each) for each in verdicts],
        })  # fmt: skip
    else:
        _show(device, verdicts)
        next_command("comigs-edge status" if home.root.exists() else "comigs-edge init")
    if any(each.verdict == "bad" for each in verdicts):
        raise typer.Exit(1)


def _show(device: Device, verdicts: list[Finding]) -> None:
    cores = ", ".join(f"{each.count} x {each.kind}{f' at {each.max_mhz} MHz' if each.max_mhz else ''}" for each in device.cores)
    rows: dict[str, Any] = {
        "device": device.model, "cores": cores, "features": ", ".join(device.features) or "none that matter here",
        "GPU": device.gpu, "power mode": device.power_mode,
    }  # fmt: skip
    for name, value in rows.items():
        if value:
            fact(name, printable(str(value)), 12, "      ")
    for each in verdicts:
        mend = f"\n                  -> {each.mend}" if each.mend else ""
        fact(each.subject, f"{each.text}{mend}", 12, Text(f"{each.verdict:<6}", COLOURS[each.verdict]))
