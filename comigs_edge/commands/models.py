"""`comigs-edge models`: the versions of the personal model, and the way back to one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer

from comigs_edge.commands import completion
from comigs_edge.commands.console import counted, fact, local_time, next_command, out, print_json, show_table, size, warn
from comigs_edge.commands.follow import place
from comigs_edge.commands.number import number
from comigs_edge.commands.settings import settings_of
from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from coordinator.protocol.text import printable

app = typer.Typer(
    no_args_is_help=True, help="Versions of your model: what is kept, going back, deleting. (Bases: comigs-edge bases.)"
)
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


Number = Annotated[int, typer.Argument(metavar="N", help="Of `models list`.", parser=number, autocompletion=completion.versions)]
DropTraining = Annotated[
    bool, typer.Option("--drop-training", help="Give up a training that was interrupted: it would go on without this version.")
]


@app.command("list")
def list_(json: JSON = False) -> None:
    """Show the versions that are kept; chat, evaluate, export and the next training take the newest."""
    from comigs_edge.home.versions import versions
    from comigs_edge.training.next_step import find_next

    home, settings = _open()
    found = [_describe(home, settings, version) for version in versions(home.adapters)]
    shown = "comigs-edge models show" if len(found) == 1 else "comigs-edge models use N"
    then = shown if found else find_next(home, settings)
    if json:
        print_json({"versions": found, "next": then})
        return
    if not found:
        out.print("no version of your model is kept here yet (bases are shown by: comigs-edge bases list)", soft_wrap=True)
    else:
        rows = [
            (each["version"], local_time(each["made"]), each["expert_steps"] or "", _loss(each), (each["text"] or "")[:8],
             size(each["bytes"]), _exported(each), _remarks(each))
            for each in found
        ]  # fmt: skip
        show_table(("version", "made", "steps", "validation loss", "text", "size", "exports", "remarks"), rows, long="remarks")
    next_command(then)


@app.command("show")
def show(
    version: Annotated[
        Optional[int],
        typer.Argument(
            metavar="N", help="Of `models list`; default: the one in use.", parser=number, autocompletion=completion.versions
        ),
    ] = None,
    json: JSON = False,
) -> None:
    """Show all that is known of a version."""
    from comigs_edge.home.versions import find

    home, settings = _open()
    facts = _describe(home, settings, find(home.adapters, version))
    if json:
        print_json(facts)
        return
    measured = facts["measured"]
    bits, lost = measured.get("bits_per_byte"), measured.get("elsewhere")
    rows = {
        "version": f"{facts['version']}, {_remarks(facts) or 'kept'}", "made": local_time(facts["made"]), "base": facts["base"],
        "experts": facts["experts"], "trained": _trained(facts), "loss": _loss(facts),
        "text": facts["text"] and f"fingerprint {facts['text']}, {counted(facts['files'], 'file')}",
        "test text": bits and f"{bits['base']:.4f} bits per byte with the base, {bits['mixture']:.4f} with this version",
        "elsewhere": lost and f"{lost['change']:+.1%} (KL divergence from the base {lost['divergence']:.3f})",
        "folder": f"{facts['path']}, {size(facts['bytes'])}",
    }  # fmt: skip
    rows |= {f"export {at}": f"{each['path']}, {size(each['bytes'])}" for at, each in enumerate(facts["exports"], 1)}
    for name, value in rows.items():
        if value:
            fact(name, value, 11)
    next_command("comigs-edge chat" if facts["in_use"] else f"comigs-edge models use {facts['version']}")


@app.command("use")
def use(version: Number, drop_training: DropTraining = False, json: JSON = False) -> None:
    """Make a version the one in use, as a copy with the next number; the others stay."""
    home, settings = _open()
    _use(home, settings, version, drop_training, json)


@app.command("rollback")
def rollback(drop_training: DropTraining = False, json: JSON = False) -> None:
    """Use the version before the one in use; once more: the one before that. (comigs-edge rollback: the fleet's generalist.)"""
    from comigs_edge.home.versions import find_before

    home, settings = _open()
    _use(home, settings, find_before(home.adapters), drop_training, json)


@app.command("rm")
def rm(
    numbers: Annotated[
        list[int],
        typer.Argument(metavar="N...", help="Of `models list`.", parser=number, autocompletion=completion.unused_versions),
    ],
    json: JSON = False,
) -> None:
    """Delete versions with the models that were exported of them; never the one in use."""
    from comigs_edge.export.names import exports_of
    from comigs_edge.home.versions import find, remove

    home, settings = _open()
    with home.lock("models rm"):
        newest = find(home.adapters)
        for number in numbers:
            if find(home.adapters, number) == newest:
                raise ComigsError(f"version {number} is the one in use; use another one first: comigs-edge models use N")
        found = [_describe(home, settings, number) for number in dict.fromkeys(numbers)]
        for each in found:
            for path in exports_of(home, each["version"]):
                path.unlink(missing_ok=True)
            remove(home.adapters, [each["version"]])
    if json:
        print_json({"removed": found})
        return
    for each in found:
        freed = each["bytes"] + sum(file["bytes"] for file in each["exports"])
        out.print(f"removed version {each['version']} with {counted(len(each['exports']), 'exported file')}, {size(freed)}")
    next_command("comigs-edge models list")


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(metavar="FOLDER|FILE", help="A folder as PEFT saves it, or a GGUF adapter.")],
    specialist: Annotated[int, typer.Option(metavar="N", min=1, help="The specialist that starts with it.")] = 1,
    json: JSON = False,
) -> None:
    """Start a specialist with a LoRA that somebody else trained for this base; LoRA experts only."""
    from comigs_edge.home.versions import versions
    from comigs_edge.training.imported import start_specialist
    from comigs_edge.training.next_step import find_next

    home, settings = _open()
    with home.lock("models import"):
        made = versions(home.adapters)
        dropped = f"comigs-edge models use {made[-1]} --drop-training" if made else "comigs-edge train --fresh"
        _refuse_interrupted(home, "what is imported", dropped)
        version = start_specialist(home, settings, path.expanduser().absolute(), specialist)
    if json:
        print_json(_describe(home, settings, version))
        return
    out.print(f"specialist {specialist} starts with {printable(path.name)}, as version {version} of your model", soft_wrap=True)
    next_command(find_next(home, settings, has_new_text=True))


@app.command("pull", hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def pull(context: typer.Context, json: JSON = False) -> NoReturn:
    """What `bases pull` was called once."""
    raise typer.BadParameter(
        f"models are the versions of yours; get a base with: comigs-edge bases pull {' '.join(context.args)}"
    )


def _open() -> tuple[Home, Config]:
    home = homes.locate()
    if not home.exists:
        raise ComigsError(
            f"there is no home at {home.root}; make one with: comigs-edge init (bases are shown by: comigs-edge bases list)"
        )
    return home, settings_of(home)


def _use(home: Home, settings: Config, version: int, drop_training: bool, json: bool) -> None:
    from comigs_edge.base.hparams import read_hparams
    from comigs_edge.home.versions import find, use
    from comigs_edge.training import checkpoint
    from comigs_edge.training.learned import drop_training as drop
    from quantize.gguf_file import GGUFFile

    with home.lock("models use"):
        find(home.adapters, version)
        if not drop_training:
            _refuse_interrupted(home, f"version {version}", f"comigs-edge models use {version} --drop-training")
        newest = use(home.adapters, read_hparams(GGUFFile(home.base_file)), settings.base.sha256, version)
        if checkpoint.Latest(home.state).interrupted is not None:
            drop(home)  # once the version is in use: a kill before loses neither
    if json:
        print_json(_describe(home, settings, newest) | {"used": version})
        return
    is_copy = f", as version {newest}" if newest != version else ""
    out.print(f"version {version} is in use{is_copy}; the next training goes on from it", soft_wrap=True)
    _say_fleet(home, version)
    next_command("comigs-edge chat")


def _refuse_interrupted(home: Home, what: str, give_up: str) -> None:
    """Raises `ComigsError` where a training would go on from something else."""
    from comigs_edge.training import checkpoint

    if (state := checkpoint.Latest(home.state).interrupted) is not None:
        done, steps = state.progress["expert_steps"], state.progress["schedule"]["steps"]
        raise ComigsError(
            f"a training was interrupted {place(done, steps)}, and would go on without {what}; end it first with: "
            f"comigs-edge train --resume, or give it up with: {give_up}"
        )


def _say_fleet(home: Home, version: int) -> None:
    """What a fleet does with it."""
    from comigs_edge.fleet.folder import FleetFolder

    if FleetFolder(home).is_member:
        warn(
            f"in a fleet the next training or sync brings the fleet's generalist back, the specialists stay version {version}'s; "
            "an older generalist of the fleet: comigs-edge rollback"
        )


def _describe(home: Home, settings: Config, version: int) -> dict[str, Any]:
    """What is known of a version; of a damaged one why it cannot be read."""
    from comigs_edge.export.names import exports_of
    from comigs_edge.home.versions import UNFINISHED, read_manifest, versions

    folder, manifest, damage = home.adapters / f"{version:04d}", {}, None
    try:
        manifest = read_manifest(home.adapters, version)
    except ComigsError as error:
        damage = str(error)
    sha256, layout = manifest.get("base_sha256"), manifest.get("layout", {})
    is_of_base = sha256 == settings.base.sha256
    own = {name: manifest.get(name) for name in (
        "copy_of", "generalist", "expert_steps", "router_steps", "validation_loss_before", "validation_loss", "text", "sha256",
        "imported", UNFINISHED,
    )}  # fmt: skip
    return own | {
        "version": version, "in_use": version == versions(home.adapters)[-1], "damage": damage,
        "made": manifest.get("made") or _modified(folder), "is_of_base": is_of_base or damage is not None,
        "base": settings.base.name if is_of_base else manifest.get("base_name") or (sha256 and f"a base {sha256[:12]}"),
        "experts": layout and f"1 generalist + {layout['num_specialists']}, {layout.get('form', 'lora')}"
        + (", zero expert" if layout.get("zero_expert") else ""),
        "files": len(manifest.get("learned") or ()), "measured": manifest.get("measured", {}),
        "path": str(folder), "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "exports": [{"path": str(path), "bytes": path.stat().st_size} for path in exports_of(home, version)],
    }  # fmt: skip


def _modified(folder: Path) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(folder.stat().st_mtime))


def _remarks(facts: dict[str, Any]) -> str:
    lost = facts["measured"].get("elsewhere")
    return ", ".join(filter(None, (
        "in use" if facts["in_use"] else "", facts["copy_of"] and f"copy of {facts['copy_of']}",
        "of an interrupted training" if facts["unfinished"] else "", "damaged" if facts["damage"] else "",
        "" if facts["is_of_base"] else f"of {facts['base']}",
        "" if facts["generalist"] is None else f"generalist {facts['generalist']}",
        "zero expert" if facts["experts"] and "zero expert" in facts["experts"] else "",
        facts["imported"] and f"starts with {facts['imported']}",
        lost and f"{lost['change']:+.1%} elsewhere",
    )))  # fmt: skip


def _exported(facts: dict[str, Any]) -> str:
    return size(sum(file["bytes"] for file in facts["exports"])) if facts["exports"] else ""


def _loss(facts: dict[str, Any]) -> str:
    before, after = facts["validation_loss_before"], facts["validation_loss"]
    return "" if after is None or before is None else f"{before:.3f} to {after:.3f}"


def _trained(facts: dict[str, Any]) -> str:
    steps = facts["expert_steps"]
    return "" if steps is None else f"{steps} expert steps, {facts['router_steps']} router steps"
