"""`comigs-edge paths`: where everything lies."""

from __future__ import annotations

from typing import Annotated

import typer

from comigs_edge.base.catalogue import bases_folder
from comigs_edge.commands.console import fact, next_command, print_json
from comigs_edge.home import folder as homes
from coordinator.protocol.text import printable


def paths(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show where everything lies: the home, and each thing in it; what is not there yet too."""
    home = homes.locate()
    places = {
        "home": home.root, "config": home.config_file, "base": home.base_file, "data": home.documents_file,
        "chats": home.chats_file, "adapters": home.adapters, "models": home.models, "state": home.state,
        "ordinary text": home.state / "ordinary-*.json", "log": home.log_file, "fleet": home.fleet,
        "device key": home.root / "device.key", "bases": bases_folder(),
    }  # fmt: skip
    if json:
        print_json({name: str(path) for name, path in places.items()})
        return
    for name, path in places.items():
        is_there = any(path.parent.glob(path.name)) if "*" in path.name else path.exists()
        fact(name, printable(str(path)) + ("" if is_there else "  (not there yet)"), 14)
    next_command("comigs-edge status" if home.exists else "comigs-edge init")
