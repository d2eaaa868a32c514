"""`comigs-edge status`: what is there, and the next useful command."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from comigs_edge.commands.console import next_command, out, print_json, size
from comigs_edge.commands.follow import follow_training, line
from comigs_edge.data.corpus import Corpus
from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home import holder
from comigs_edge.home.config import Config
from coordinator.protocol.text import printable


def status(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the training that runs until it ends; Ctrl-C ends only the watching.")
    ] = False,
) -> None:
    """Show the home, its base, text, training and models, and what to do next."""
    if follow:
        follow_training(homes.locate())
    facts = _collect()
    if json:
        print_json(facts)
        return
    out.print(f"[bold]home      [/]{facts['home']}", soft_wrap=True)
    if facts["base"]:
        out.print(
            f"[bold]base      [/]{facts['base']['name']}, {size(facts['base']['size'])}, sha256 {facts['base']['sha256'][:16]}"
        )
        data = ", ".join(f"{s['documents']} {name}" for name, s in facts["data"].items())
        total = sum(s["bytes"] for s in facts["data"].values())
        out.print(f"[bold]text      [/]{data} documents, {size(total)}")
        made = facts["adapters"]
        out.print(f"[bold]training  [/]{_training_line(facts['training'], facts['running'])}", soft_wrap=True)
        if made:
            losses = f"{made['validation_loss_before']:.4f} before, {made['validation_loss']:.4f} after"
            out.print(f"[bold]adapters  [/]version {made['version']}, validation loss {losses}")
        if fleet := facts["fleet"]:
            newest = "no generalist yet" if fleet["generalist"] is None else f"generalist {fleet['generalist']}"
            waits = ", an update waits" if fleet["waits"] else ""
            name = escape(printable(fleet["name"]))
            out.print(f"[bold]fleet     [/]{fleet['address']}, as {name}, {newest}{waits}", soft_wrap=True)
        for model in facts["models"]:
            out.print(f"[bold]model     [/]{model['path']}, {size(model['bytes'])}", soft_wrap=True)
    next_command(facts["next"])


def _collect() -> dict[str, Any]:
    home = homes.locate()
    facts: dict[str, Any] = {
        "home": str(home.root), "base": None, "data": {}, "training": {"state": "none", "expert_steps": 0, "steps": 0},
        "running": None, "adapters": None, "models": [], "fleet": None, "next": "comigs-edge init",
    }  # fmt: skip
    if not home.exists:
        return facts
    from comigs_edge.home.versions import read_manifest, versions
    from comigs_edge.training import checkpoint

    settings = home.settings()
    facts |= {"base": asdict(settings.base), "profile": settings.profile, "data": Corpus(home.documents_file).sizes()}
    saved = checkpoint.load(home.state)
    if saved is not None and saved[1]:
        state = "finished" if saved[1]["finished"] else "interrupted"
        steps = saved[1]["schedule"]["steps"]
        facts["training"] = {"state": state, "expert_steps": saved[1]["expert_steps"], "steps": steps}
    running = holder.present(home.holder_file)
    if running is not None:
        facts["running"] = asdict(running)
    numbers = versions(home.adapters)
    if numbers:
        facts["adapters"] = read_manifest(home.adapters, numbers[-1])
    facts["models"] = [{"path": str(p), "bytes": p.stat().st_size} for p in sorted(home.models.glob("*.gguf"))]
    facts["fleet"] = _fleet(home)
    facts["next"] = _next(facts, home, settings)
    return facts


def _training_line(training: dict[str, Any], running: dict[str, Any] | None) -> str:
    if running is not None and running["command"] == "train":
        progress = running["progress"]
        how_far = line(holder.Progress(**progress)) if progress else "begins"
        return f"{how_far} (process {running['process']}, since {running['since']})"
    steps = f", {training['expert_steps']} of {training['steps']} expert steps" if training["steps"] else ""
    other = f"; now runs: comigs-edge {running['command']} (process {running['process']})" if running else ""
    return f"{training['state']}{steps}{other}"


def _fleet(home: homes.Home) -> dict[str, Any] | None:
    from comigs_edge.fleet.folder import FleetFolder

    folder = FleetFolder(home)
    if not folder.is_member:
        return None
    member, standing = folder.membership(), folder.standing()
    generalist = None if standing.trained_from < 0 else standing.trained_from
    return {
        "address": member.address, "name": member.name, "generalist": generalist, "waits": folder.outbox() is not None,
        "local_steps": member.local_steps,
    }  # fmt: skip


def _next(facts: dict[str, Any], home: homes.Home, settings: Config) -> str:
    """A command that will not refuse."""
    running = facts["running"]
    if running is not None and running["command"] == "train":
        return "comigs-edge status --follow"
    try:
        homes.corpus(home, settings).check_enough()
    except ComigsError:
        return "comigs-edge chat" if facts["adapters"] else "comigs-edge data add FOLDER"
    if facts["training"]["state"] == "interrupted":
        return "comigs-edge train --resume"
    return "comigs-edge chat" if facts["adapters"] else "comigs-edge train"
