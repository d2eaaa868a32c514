"""`comigs-edge export`: one GGUF file that llama.cpp and all that is built on it run."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from comigs_edge.commands.console import bar, next_command, out, place_for, print_json, size, warn
from comigs_edge.commands.settings import settings_of
from comigs_edge.home import folder as homes
from comigs_edge.home.config import FORMATS_TO_EXPORT, LAYOUTS, Config, Storage
from comigs_edge.home.folder import Home
from comigs_edge.nn.experts import FORMS
from coordinator.protocol.text import printable

if TYPE_CHECKING:
    from comigs_edge.export.current import Exported


def export(
    format: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", help="Block format of what was trained: Q8_0, Q4_0, Q4_K, F16 ...; default: config.toml's."),
    ] = None,
    layout: Annotated[
        Optional[str],
        typer.Option(metavar="merged|hot", help="One file, or a base and adapters that llama.cpp swaps; default: config.toml's."),
    ] = None,
    output: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="File (layout hot: folder) to write; default: a new version in models/."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write your model as one GGUF file for llama.cpp, Ollama and others."""
    home = homes.locate()
    settings = settings_of(home)
    from comigs_edge.export import folder as models

    storage = settings.storage(layout, format)
    for name, known in ((storage.format, FORMATS_TO_EXPORT), (storage.layout, LAYOUTS)):
        if name not in known:
            raise typer.BadParameter(f"{name} is not one of {', '.join(known)}")
    place, start = place_for(output, is_folder=storage.layout == "hot"), time.monotonic()
    with bar("exporting") as progress:
        exported = models.export_newest(home, settings, storage, place, progress)
    seconds = time.monotonic() - start
    for text in _cautions(home, settings, storage, exported):
        warn(text)
    if json:
        print_json({
            "path": str(exported.path), "adapters": [str(path) for path in exported.adapters], "bytes": exported.size,
            "seconds": round(seconds, 2), "sha256": exported.sha256, "format": storage.format, "layout": storage.layout,
            "formats": exported.formats,
        })  # fmt: skip
        return
    _show(exported, seconds)
    if output is None and not FORMS[settings.model.expert_form].is_low_rank:
        out.print("The next training is written into this file; --output FILE makes one that stays.", soft_wrap=True)
    next_command("comigs-edge chat")


def _cautions(home: Home, settings: Config, storage: Storage, exported: Exported) -> list[str]:
    from comigs_edge.home.versions import read_manifest, versions

    manifest = read_manifest(home.adapters, versions(home.adapters)[-1])
    cautions = []
    others = {name: count for name, count in exported.formats.items() if name != storage.format}
    if others:
        listed = ", ".join(f"{count} tensors in {name}" for name, count in others.items())
        cautions.append(f"rows that are not whole blocks of {storage.format} took the format llama.cpp falls back to: {listed}")
    low_bits = storage.format[0] in "QI" and storage.format != "Q8_0"
    if low_bits and FORMS[settings.model.expert_form].is_low_rank and manifest.get("block_format") != storage.format:
        cautions.append(
            f"{storage.format} rounds the merged weights again, and these were not trained for it: of a small update to a "
            '4-bit base as little as 6 to 14 % survives; put format = "Q4_0" into [quantize] of config.toml and train, or '
            "use Q8_0"
        )
    return cautions


def _show(exported: Exported, seconds: float) -> None:
    digest = f", sha256 {exported.sha256}" if exported.sha256 else ""
    out.print(f"{printable(str(exported.path))}\n{size(exported.size)} in {seconds:.1f} s{digest}\n", soft_wrap=True)
    out.print("Use it elsewhere:", soft_wrap=True)
    loras = [word for path in exported.adapters for word in ("--lora", str(path))]
    out.print(f"  {shlex.join(['llama-server', '-m', str(exported.path), *loras])}", soft_wrap=True)
    if not loras:
        line = shlex.quote(f"FROM {exported.path}")
        out.print(f"  echo {line} > Modelfile && ollama create mine -f Modelfile && ollama run mine", soft_wrap=True)
