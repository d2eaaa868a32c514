"""`comigs-edge models`: bases that can be had by name, and getting one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional
from urllib.parse import urlsplit

import typer

from comigs_edge import home as homes
from comigs_edge.catalogue import CATALOGUE
from comigs_edge.errors import ComigsError

ENDPOINT = "https://huggingface.co"
app = typer.Typer(no_args_is_help=True, help="Bases: what can be had by name, and getting one.")


@app.command("list")
def list_models(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the bases that can be had by name, and those that are here."""
    from rich.table import Table

    from comigs_edge.commands.console import next_command, out, print_json, size

    folder = homes.bases_folder()
    here = {path.stem: path for path in sorted(folder.glob("*.gguf"))}
    if json:
        print_json({
            "folder": str(folder),
            "catalogue": {name: vars(entry) for name, entry in CATALOGUE.items()},
            "here": {name: {"path": str(path), "bytes": path.stat().st_size} for name, path in here.items()},
        })  # fmt: skip
        return
    table = Table("name", "size", "licence", "here")
    table.add_row(homes.DEFAULT_BASE, "98 MB", "Apache-2.0", "comes with a Python package")
    for name, entry in CATALOGUE.items():
        table.add_row(name, f"{entry.megabytes} MB", entry.licence, str(here.get(name, "")))
    for name in here.keys() - CATALOGUE.keys():
        table.add_row(name, size(here[name].stat().st_size), "", str(here[name]))
    out.print(table)
    next_command("comigs-edge models pull NAME")


@app.command("pull")
def pull(
    model: Annotated[str, typer.Argument(metavar="NAME|URL", help="A name of `models list`, or the address of a .gguf file.")],
    sha256: Annotated[
        Optional[str], typer.Option(metavar="HEX", help="What the file must have, where the catalogue says nothing.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON; progress goes to standard error.")] = False,
) -> None:  # fmt: skip
    """Get a base. Interrupted, the same command goes on where it stopped."""
    from comigs_edge.commands.console import bar, next_command, out, print_json, size
    from comigs_edge.downloads import fetch
    from quantize.gguf_file import GGUFFile

    name, url, expected = _source(model)
    target = homes.bases_folder() / f"{name}.gguf"
    with bar(f"getting {name}") as progress:
        digest = fetch(url, target, expected or (sha256.lower() if sha256 else None), progress)
    architecture = str(GGUFFile(target).metadata.get("general.architecture"))
    if json:
        print_json({"name": name, "path": str(target), "bytes": target.stat().st_size, "sha256": digest, "url": url})
        return
    out.print(f"{target}\n{size(target.stat().st_size)}, {architecture}, sha256 {digest}", soft_wrap=True)
    next_command(f"comigs-edge init --base {name}")


def _source(model: str) -> tuple[str, str, str | None]:
    """Name, address and SHA-256 of what was asked for."""
    if "://" in model:
        parts = urlsplit(model)
        if parts.scheme not in ("http", "https") or not parts.path.endswith(".gguf"):
            raise ComigsError(f"{model} is no address of a .gguf file; name one that starts with https://")
        return Path(parts.path).stem.lower(), model, None
    entry = CATALOGUE.get(model.lower())
    if entry is None:
        raise ComigsError(f"{model} is not in the catalogue; names are {', '.join(CATALOGUE)}, or give an address")
    endpoint = os.environ.get("COMIGS_EDGE_ENDPOINT", ENDPOINT).rstrip("/")
    url = f"{endpoint}/{entry.repository}/resolve/{entry.revision}/{entry.file}"
    return model.lower(), url, entry.sha256
