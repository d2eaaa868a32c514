"""`comigs-edge flare`: this device as a site of a fleet on NVIDIA FLARE."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from comigs_edge.commands.console import notes, out, unbroken_output, warn
from comigs_edge.commands.plan import Lines, Profile
from comigs_edge.commands.settings import settings_of
from comigs_edge.home import folder as homes
from coordinator.protocol.text import printable

PATIENCE = 120.0  # seconds that a device waits for a fleet that it has not joined yet

app = typer.Typer(no_args_is_help=True, help="Train with a large fleet on NVIDIA FLARE, the extra `flare`.")


@app.command()
def run(
    kit: Annotated[Path, typer.Argument(metavar="KIT", help="This site's startup kit, as its fleet's owner gave it to you.")],
    steps: Annotated[Optional[int], typer.Option(min=1, help="Expert steps; default: config.toml's, 200.")] = None,
    minutes: Annotated[Optional[float], typer.Option(min=0.1, help="Train as many steps as fit in this time.")] = None,
    pause: Annotated[
        bool, typer.Option("--pause/--no-pause", help="Wait while the device is hot, low on battery, short of memory or busy.")
    ] = True,
    profile: Profile = None,
    lines: Lines = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON at the end; progress goes to standard error.")] = False,
) -> None:
    """Train as `train` does, and exchange generalists through FLARE. Text, specialists and router stay here."""
    from comigs_edge.commands import train
    from comigs_edge.fleet.site import open_site
    from coordinator.protocol import kits

    if steps is not None and minutes is not None:
        raise typer.BadParameter("give --steps or --minutes, not both")
    home = homes.locate()
    settings = settings_of(home)
    said, is_soon = kits.say_end(kits.find(kit))
    warn(said) if is_soon else notes.print(said, soft_wrap=True)
    with open_site(home, kit) as site, unbroken_output():
        with home.lock("join"), notes.status("waiting for FLARE"):
            member = site.join(settings, PATIENCE)
        if member is not None:
            out.print(f"joined the fleet on FLARE as {printable(member.name)}", soft_wrap=True)
        train.perform(steps, minutes, None, pause=pause, sync=True, profile=profile, lines=lines, json=json, way=site.connect)
