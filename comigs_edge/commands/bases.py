"""`comigs-edge bases`: bases that can be had by name, and getting one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Optional

import typer

from comigs_edge.base.catalogue import CATALOGUE, DEFAULT_BASE, bases_folder, find_source
from comigs_edge.commands.console import bar, next_command, out, print_json, show_table, size
from coordinator.protocol.text import printable
from quantize.gguf_file import GGUFFile

app = typer.Typer(no_args_is_help=True, help="Bases: what can be had by name, and getting one.")


@app.command("list")
def list_bases(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the bases that can be had by name, and those that are here."""
    folder = bases_folder()
    here = {path.stem: path for path in sorted(folder.glob("*.gguf"))}
    if json:
        print_json({
            "folder": str(folder),
            "catalogue": {name: vars(entry) for name, entry in CATALOGUE.items()},
            "here": {name: {"path": str(path), "bytes": path.stat().st_size} for name, path in here.items()},
        })  # fmt: skip
        return
    rows: list[Sequence[object]] = [(DEFAULT_BASE, "98 MB", "Apache-2.0", "comes with a Python package")]
    rows += [(name, f"{entry.megabytes} MB", entry.licence, here.get(name, "")) for name, entry in CATALOGUE.items()]
    rows += [(name, size(path.stat().st_size), "", path) for name, path in here.items() if name not in CATALOGUE]
    show_table(("name", "size", "licence", "here"), rows, long="here")
    next_command("comigs-edge bases pull NAME")


@app.command("pull")
def pull(
    model: Annotated[str, typer.Argument(metavar="NAME|URL", help="A name of `bases list`, or the address of a .gguf file.")],
    sha256: Annotated[
        Optional[str], typer.Option(metavar="HEX", help="What the file must have, where the catalogue says nothing.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON; progress goes to standard error.")] = False,
) -> None:
    """Get a base. After an interruption the same command continues the download."""
    from comigs_edge.base.download import fetch

    name, url, expected = find_source(model)
    target = bases_folder() / f"{name}.gguf"
    with bar(f"getting {name}") as progress:
        digest = fetch(url, target, expected or (sha256.lower() if sha256 else None), progress)
    architecture = str(GGUFFile(target).metadata.get("general.architecture"))
    if json:
        print_json({"name": name, "path": str(target), "bytes": target.stat().st_size, "sha256": digest, "url": url})
        return
    out.print(
        f"{printable(str(target))}\n{size(target.stat().st_size)}, {printable(architecture)}, sha256 {digest}", soft_wrap=True
    )
    next_command(f"comigs-edge init --base {name}")
