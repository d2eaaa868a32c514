"""`comigs-edge home export | import`: the whole home in one file, for another board."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comigs_edge.commands.console import bar, next_command, out, place_for, size, warn
from comigs_edge.commands.settings import settings_of
from comigs_edge.home import folder as homes
from comigs_edge.home import moving
from coordinator.protocol.text import printable

app = typer.Typer(no_args_is_help=True, help="Move everything to another board, in one file.")
ONE_KEY = (
    "the device's key is in it: only one of two boards with one key can be in the fleet, so type comigs-edge leave on the old "
    "one before the new one syncs"
)


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write; it holds your text, for you alone.")],
    with_key: Annotated[
        bool, typer.Option("--with-key", help="With device.key, so that the other board takes this one's place in the fleet.")
    ] = False,
) -> None:
    """Write base, settings, text, chats and all that was learned to one file; models are exported anew there."""
    home = homes.locate()
    settings_of(home)
    place_for(file)
    with home.lock("home export"), bar("packing") as progress:
        count = moving.pack(home, file, with_key, progress)
    out.print(f"{printable(str(file))}, {size(count)}: all of {printable(str(home.root))} but what is made again", soft_wrap=True)
    has_key = (home.root / moving.KEY).exists()
    if with_key and has_key:
        warn(ONE_KEY)
    elif has_key:
        out.print("device.key is not in it: the other board joins the fleet with an invitation of its own", soft_wrap=True)
    next_command(f"comigs-edge home import {printable(file.name)}", "on the other board")


@app.command("import")
def import_(file: Annotated[Path, typer.Argument(metavar="FILE", help="What `home export` wrote.")]) -> None:
    """Make the home from such a file, where there is none yet. Every byte is checked first."""
    from comigs_edge.training.next_step import find_next

    home = homes.locate()
    with bar("unpacking") as progress:
        has_key = moving.unpack(home, file.expanduser().absolute(), progress)
    settings = settings_of(home)
    out.print(f"made {printable(str(home.root))}", soft_wrap=True)
    if has_key:
        warn(ONE_KEY)
    next_command(find_next(home, settings))
