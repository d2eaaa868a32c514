"""`comigs-edge doctor`: what this device is, what hinders it, and what to do about that."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comigs_edge.commands.console import next_command, out, print_json
from comigs_edge.home import folder as homes
from profiles.detect import Device, detect

if TYPE_CHECKING:
    from comigs_edge.planning.doctor import Finding

MARKS = {"good": "[green]good[/]", "note": "[blue]note[/]", "poor": "[yellow]poor[/]", "bad": "[red]bad [/]"}


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Look at this device and say what would hinder training and chat. Exit code 1 if something is bad."""
    from comigs_edge.planning.doctor import conditions, findings, versions

    home = homes.locate()
    folder = next(path for path in [home.root, *home.root.parents] if path.exists())
    device, here, installed = detect(folder=str(folder)), conditions(folder), versions()
    verdicts = findings(device, here, installed)
    if json:
        print_json({
            "device": asdict(device), "conditions": asdict(here), "versions": installed,
            "findings": [asdict(each) for each in verdicts],
        })  # fmt: skip
    else:
        _show(device, verdicts)
        next_command("comigs-edge status" if home.exists else "comigs-edge init")
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
            out.print(f"      [bold]{name:<12}[/]{value}", soft_wrap=True)
    for each in verdicts:
        mend = f"\n                  -> {each.mend}" if each.mend else ""
        out.print(f"{MARKS[each.verdict]}  [bold]{each.subject:<12}[/]{each.text}{mend}", soft_wrap=True)
