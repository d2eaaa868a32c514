"""`comigs-edge export`: one GGUF file that llama.cpp and all that is built on it run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Optional

import typer

from comigs_edge import home as homes


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("export")(export)


def export(
    format: Annotated[
        Optional[str],
        typer.Option(
            metavar="Q8_0|F16|F32|Q4_0|Q4_1", help="Format of the experts' weights; default: config.toml's, Q8_0."
        ),
    ] = None,
    output: Annotated[Optional[Path], typer.Option(help="File to write; default: a new version in models/.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write your model as one GGUF file for llama.cpp, Ollama and others."""
    from comigs_edge.commands.console import bar, next_command, out, print_json, size, warn

    home = homes.locate()
    settings = home.settings()
    from comigs_edge import session
    from comigs_edge.export import FORMATS_TO_EXPORT, FOUR_BIT_WARNING

    name = (format or settings.export.format).upper()
    if name not in FORMATS_TO_EXPORT:
        raise typer.BadParameter(f"{name} is not one of {', '.join(FORMATS_TO_EXPORT)}")
    if name.startswith("Q4"):
        warn(FOUR_BIT_WARNING.format(format=name))
    start = time.monotonic()
    with bar("exporting") as progress:
        exported = session.export_newest(home, settings, name, output and output.expanduser().absolute(), progress)
    seconds = time.monotonic() - start
    if json:
        print_json({
            "path": str(exported.path), "bytes": exported.size, "seconds": round(seconds, 2),
            "sha256": exported.sha256, "format": name,
        })  # fmt: skip
        return
    out.print(f"{exported.path}\n{size(exported.size)} in {seconds:.1f} s, sha256 {exported.sha256}\n", soft_wrap=True)
    out.print("Use it elsewhere:", soft_wrap=True)
    out.print(f"  llama-server -m {exported.path}", soft_wrap=True)
    out.print(
        f"  echo 'FROM {exported.path}' > Modelfile && ollama create mine -f Modelfile && ollama run mine",
        soft_wrap=True,
    )
    next_command("comigs-edge chat")
