"""`comigs-edge status`: what is there, and the next useful command."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comigs_edge.commands import reading_report
from comigs_edge.commands.console import fact, next_command, print_json, size
from comigs_edge.commands.follow import follow_training, line, place
from comigs_edge.commands.settings import settings_of
from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home import holder
from comigs_edge.home.night import read_night
from coordinator.protocol.text import printable

if TYPE_CHECKING:
    from comigs_edge.training.checkpoint import Latest


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
    _show(facts)
    next_command(facts["next"])


def _show(facts: dict[str, Any]) -> None:
    rows = [("home", printable(facts["home"]))]
    if base := facts["base"]:
        rows.append(("base", f"{printable(base['name'])}, {size(base['size'])}, sha256 {base['sha256'][:16]}"))
        data = ", ".join(f"{s['documents']} {name}" for name, s in facts["data"].items())
        total = sum(s["bytes"] for s in facts["data"].values())
        rows.append(("text", f"{data} documents, {size(total)}"))
        if local := facts["local"]:
            rows.append(("", f"{local} of them local: the generalist learns nothing of these"))
        if left := reading_report.left_out(facts["left_out"]):
            rows.append(("", f"left out: {left}"))
        made = facts["adapters"]
        rows.append(("training", _training_line(facts["training"], facts["running"])))
        if night := facts["night"]:
            rows.append(("night", printable(f"{night['began']}: {night['read']}")))
            rows.append(("", printable(night["trained"])))
            rows.append(("", printable(f"left: {'; '.join(night['left'])}" if night["left"] else "nothing was left")))
        if remains := facts["removed_text_in"]:
            rows.append(
                ("removed", f"text that was removed was learned by {remains}; delete with: comigs-edge data remove --learned")
            )
        if made:
            before, after = made.get("validation_loss_before"), made.get("validation_loss")  # none of what was imported
            losses = "" if before is None else f", validation loss {before:.4f} before, {after:.4f} after"
            rows.append(("adapters", f"version {made['version']}{losses}"))
        if fleet := facts["fleet"]:
            rows.append(("fleet", _fleet_line(fleet)))
        rows += [("exported", f"{printable(model['path'])}, {size(model['bytes'])}") for model in facts["models"]]
        if made and facts["models"] and not any(f"personal-{made['version']:04d}-" in each["path"] for each in facts["models"]):
            rows.append(("", f"version {made['version']} is not exported yet: chat and export do it"))
    for name, value in rows:
        fact(name, value, 10)


def _collect() -> dict[str, Any]:
    home = homes.locate()
    facts: dict[str, Any] = {
        "home": str(home.root), "base": None, "data": {}, "training": {"state": "none", "expert_steps": 0, "steps": 0},
        "running": None, "adapters": None, "models": [], "fleet": None, "left_out": {}, "local": 0, "night": None,
        "removed_text_in": "", "next": "comigs-edge init",
    }  # fmt: skip
    if not home.exists:
        return facts
    from comigs_edge.home.versions import read_manifest, versions
    from comigs_edge.training import checkpoint
    from comigs_edge.training.learned import find_remains
    from comigs_edge.training.next_step import find_next

    settings = settings_of(home)
    corpus = homes.corpus(home, settings)
    facts |= {"base": asdict(settings.base), "profile": settings.profile, "data": corpus.sizes()}
    facts["left_out"] = corpus.left_out()
    night = read_night(home.night_file)
    facts["night"] = night and asdict(night)
    facts["local"] = sum(each["documents"] for each in corpus.sizes(local=True).values())
    latest = checkpoint.Latest(home.state)
    if (saved := latest.state) is not None and saved.progress:
        state, steps = "interrupted" if saved.is_interrupted else "finished", saved.progress["schedule"]["steps"]
        facts["training"] = {"state": state, "expert_steps": saved.progress["expert_steps"], "steps": steps}
    running = holder.present(home.holder_file)
    if running is not None:
        facts["running"] = asdict(running) | {"suspended": running.is_suspended}
    numbers = versions(home.adapters)
    if numbers:
        facts["adapters"] = read_manifest(home.adapters, numbers[-1])
    facts["models"] = [{"path": str(p), "bytes": p.stat().st_size} for p in sorted(home.models.glob("*.gguf"))]
    facts["fleet"] = _fleet(home, latest)
    facts |= {"removed_text_in": str(find_remains(home, corpus, latest=latest)), "next": find_next(home, settings, latest=latest)}
    return facts


def _training_line(training: dict[str, Any], running: dict[str, Any] | None) -> str:
    if running is not None and running["command"] == "train":
        progress = running["progress"]
        how_far = line(holder.Progress(**progress)) if progress else "begins"
        suspended = "suspended (fg, or kill -CONT), " if running["suspended"] else ""
        return f"{suspended}{how_far} (process {running['process']}, since {running['since']})"
    done, total = training["expert_steps"], training["steps"]
    steps = f", {done} of {total} expert steps" if total else ""
    if training["state"] == "interrupted":
        steps = f" {place(done, total)}"
    other = f"; now runs: comigs-edge {running['command']} (process {running['process']})" if running else ""
    return f"{training['state']}{steps}{other}"


def _fleet(home: homes.Home, latest: Latest) -> dict[str, Any] | None:
    if not home.fleet.exists():  # its code, cryptography among it, takes a tenth of the time to load
        return None
    from comigs_edge.fleet.folder import FleetFolder
    from comigs_edge.fleet.waiting import waits

    folder = FleetFolder(home)
    heard, standing, member, unsent = folder.heard, folder.standing(), None, None
    troubles = [heard.trouble, heard.kept_out, heard.alarm(folder.key_file)]
    try:
        member = folder.membership()
        unsent = waits(home, folder, member, standing, latest)
    except ComigsError as error:
        troubles = [str(error)]
    return {
        "address": member and member.address, "name": member and member.name, "waits": unsent,
        "generalist": None if standing.trained_from < 0 else standing.trained_from,
        "local_steps": member and member.local_steps, "round_waits": heard.waiting,
        "troubles": [*filter(None, troubles), *folder.notes],
    }  # fmt: skip


def _fleet_line(fleet: dict[str, Any]) -> str:
    facts = [fleet["address"], fleet["name"] and f"as {printable(fleet['name'])}"]
    facts += ["no generalist yet" if fleet["generalist"] is None else f"generalist {fleet['generalist']}"]
    remedy = "" if fleet["troubles"] else " (comigs-edge sync brings it)"  # else the trouble says what to do first
    facts += [f"an update waits{remedy}" if fleet["waits"] else None, fleet["round_waits"]]
    troubles = "".join(f"\n          {printable(each)}" for each in fleet["troubles"])
    return ", ".join(filter(None, facts)) + troubles
