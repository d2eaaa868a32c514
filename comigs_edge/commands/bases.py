"""`comigs-edge bases`: bases that can be had by name and what each takes of this device; getting one, deleting one."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from comigs_edge.base.catalogue import CATALOGUE, DEFAULT_BASE, bases_folder, find_base, find_source
from comigs_edge.commands import completion
from comigs_edge.commands.console import bar, measuring, next_command, out, print_json, show_table, size
from comigs_edge.errors import EXPECTED, ComigsError
from comigs_edge.home import config_file
from comigs_edge.home import folder as homes
from comigs_edge.home.folder import Home
from coordinator.protocol.text import printable
from quantize.gguf_file import GGUFFile

if TYPE_CHECKING:
    from comigs_edge.planning.bases import Candidate, Fit

app = typer.Typer(no_args_is_help=True, help="Bases: what can be had by name and fits this device, getting one, deleting one.")
SHIPPED_LICENCE = "Apache-2.0"  # of the default base
JSON = Annotated[bool, typer.Option("--json", help="Print JSON; progress goes to standard error.")]


def here() -> dict[str, Path]:
    """The bases that were pulled: name -> file."""
    return {path.stem: path for path in sorted(bases_folder().glob("*.gguf"))}


@app.command("list")
def list_bases(
    measure: Annotated[bool, typer.Option(help="Measure the processor for half a second, for minutes and tokens.")] = True,
    json: JSON = False,
) -> None:
    """Show the bases that can be had by name and those that are here, with what each would take of this device."""
    files, home = here(), homes.locate()
    fits, recommended = fit_bases(home, measure)
    used = _used(home)
    if json:
        print_json({
            "folder": str(bases_folder()), "catalogue": {name: asdict(entry) for name, entry in CATALOGUE.items()},
            "here": {name: {"path": str(path), "bytes": path.stat().st_size} for name, path in files.items()},
            "fits": [asdict(fit) | {"is_good": fit.is_good} for fit in fits], "home": used, "recommended": recommended,
        })  # fmt: skip
        return
    show_fits(fits, used or "")
    if files:
        taken = sum(path.stat().st_size for path in files.values())
        out.print(f"{printable(str(bases_folder()))} takes {size(taken)}", soft_wrap=True)
    next_command(advice(recommended if recommended not in (None, used) else "NAME"))


def advice(name: str) -> str:
    """How a base is taken."""
    is_here = name == DEFAULT_BASE or name in here()
    return f"comigs-edge init --force --base {name}" if is_here else f"comigs-edge bases pull {name}"


def fit_bases(home: Home, measure: bool = True) -> tuple[list[Fit], str | None]:
    """What every known base takes of this device, and the name of the recommended one if one is carried well."""
    from comigs_edge.planning.bases import known, predict, recommend
    from comigs_edge.planning.speed import measure_speed
    from profiles import load
    from profiles.detect import detect

    place = home.root
    while not place.exists():
        place = place.parent
    profile = load("auto")
    with suppress(*EXPECTED):
        profile = config_file.read(home.config_file).device()
    candidates, device, free = [*_shipped(), *known()], detect(folder=str(place)), shutil.disk_usage(place).free
    others, broken = _others({each.name for each in candidates})
    with measuring(measure):
        speed = measure_speed(profile.usable_threads) if measure else None
    there = {DEFAULT_BASE, *here()}  # whose own files need no more room
    fits = [
        predict(each, device, profile, speed, free - (0 if each.name in there else each.size)) for each in [*candidates, *others]
    ]
    return fits + broken, recommend(fits[: len(candidates)])


def show_fits(fits: list[Fit], used: str | None = None) -> None:
    """A table of them, also of where they are and under which licence if `used`, the base of the home, is given."""
    rows = [_row(fit) for fit in fits]
    headers = ["name", "size", "memory", "first model", "tokens"]
    if used is not None:
        headers += ["where", "licence", "does not fit"]
        rows = [[*row, _place(fit.name, used), _licence(fit.name), fit.hindrance] for row, fit in zip(rows, fits, strict=True)]
    show_table(headers, rows, long=headers[-1] if used is not None else "name")
    out.print(
        "estimates for the processor: memory at the most, minutes for 30 steps, tokens a second of an answer", style="dim",
        soft_wrap=True,
    )  # fmt: skip


def _row(fit: Fit) -> list[str]:
    return [
        fit.name, size(fit.size), "" if fit.memory is None else size(fit.memory),
        "" if fit.minutes is None else f"{max(1, round(fit.minutes))} min",
        "" if fit.tokens_per_second is None else f"{fit.tokens_per_second:.0f}/s",
    ]  # fmt: skip


def _place(name: str, used: str) -> str:
    return "this home's" if name == used else "here" if name == DEFAULT_BASE or name in here() else ""


def _licence(name: str) -> str:
    return CATALOGUE[name].licence if name in CATALOGUE else SHIPPED_LICENCE if name == DEFAULT_BASE else ""


def _used(home: Home) -> str | None:
    """The name of the home's base; None where there is no home."""
    with suppress(*EXPECTED):
        return config_file.read(home.config_file).base.name
    return None


def _shipped() -> list[Candidate]:
    from comigs_edge.planning.bases import read_candidate

    with suppress(*EXPECTED):
        return [read_candidate(*find_base(DEFAULT_BASE))]
    return []  # its package is missing; `init` says how to get it


def _others(names: set[str]) -> tuple[list[Candidate], list[Fit]]:
    """Bases that are here under other names, and those of them that cannot be read."""
    from comigs_edge.planning.bases import Fit, read_candidate

    readable, broken = [], []
    for name, path in here().items():
        if name not in names:
            try:
                readable.append(read_candidate(name, path))
            except EXPECTED as error:
                broken.append(Fit(name=name, size=path.stat().st_size, hindrance=str(error)))
    return readable, broken


@app.command("pull")
def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME|URL",
            help="A name of `bases list`, or the address of a .gguf file.",
            autocompletion=completion.known_bases,
        ),
    ],
    sha256: Annotated[
        Optional[str], typer.Option(metavar="HEX", help="What the file must have, where the catalogue says nothing.")
    ] = None,
    json: JSON = False,
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
    next_command(f"comigs-edge init {'--force ' * homes.locate().exists}--base {name}")


@app.command("rm")
def rm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of `bases list`.", autocompletion=completion.unused_bases)],
    json: JSON = False,
) -> None:
    """Delete a base that was pulled, or what an interrupted download left of it; never the one of this home."""
    name, home = name.lower(), homes.locate()
    target = bases_folder() / f"{name}.gguf"
    parts = [target, *(target.with_name(f".{target.name}.{end}") for end in ("part", "etag"))]
    found = [path for path in parts if path.is_file()]
    if Path(name).name != name or not found:
        raise ComigsError(f"no base {name} was pulled; here are {', '.join(here()) or 'none'}; see: comigs-edge bases list")
    if home.base_file.exists() and home.base_file.resolve() == target.resolve():
        raise ComigsError(f"{name} is the base of {home.root}; take another one first: comigs-edge init --force --base NAME")
    freed = sum(path.stat().st_size for path in found)
    for path in found:
        path.unlink()
    if json:
        print_json({"name": name, "bytes": freed})
        return
    out.print(f"removed {name}, {size(freed)} (another home that uses it will ask for it)", soft_wrap=True)
    next_command("comigs-edge bases list")
