"""`comigs-edge sync` and `rollback`: an exchange with the fleet by hand, what would leave, and the way back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from comigs_edge.commands import completion
from comigs_edge.commands.settings import settings_of
from comigs_edge.home import folder as homes
from coordinator.protocol.text import printable

if TYPE_CHECKING:
    from comigs_edge.fleet.sync import Sync


def sync(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would leave this device, and send nothing.")] = False,
    address: Annotated[
        Optional[str], typer.Option(metavar="URL", help="The coordinator moved: its new address, https://host:port.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Exchange generalists with the fleet now. `train` does it by itself."""
    from comigs_edge.commands.console import bar
    from comigs_edge.fleet import joining
    from comigs_edge.fleet import sync as syncing
    from comigs_edge.training.next_step import find_next

    home = homes.locate()
    settings = settings_of(home)
    with home.lock("sync"):
        if address is not None:
            joining.move(home, address)
        if dry_run:
            _show_preview(*syncing.preview(home, settings), json)
            return
        with bar("exchanging generalists") as progress:
            result = syncing.sync(home, settings, progress)
        _report(result, "comigs-edge sync" if result.begins else find_next(home, settings), json)


def rollback(
    to: Annotated[
        Optional[int],
        typer.Option(
            metavar="NUMBER",
            autocompletion=completion.generalists,
            help="Number of a generalist that is kept; default: the one before.",
        ),
    ] = None,
) -> None:
    """Return to an older generalist of the fleet; the three newest are kept. (models rollback: to an older model of yours.)"""
    from comigs_edge.commands.console import next_command, out
    from comigs_edge.fleet.sync import roll_back

    home = homes.locate()
    settings = settings_of(home)
    with home.lock("rollback"):
        number, version = roll_back(home, settings, to)
    out.print(
        f"went back to generalist {number}, as version {version} of your model; the next one that is published is taken over"
    )
    next_command("comigs-edge chat")


def _show_preview(preview: dict[str, Any], may_be_first: bool, json: bool) -> None:
    from comigs_edge.commands.console import next_command, out, print_json, size
    from comigs_edge.commands.receipt import by_occasion

    if json:
        print_json(preview)
        return
    tensors = preview["tensors"]
    what = f"{len(tensors)} tensors, {size(preview['bytes'])}, nothing was sent"
    out.print(f"to {printable(preview['to'])}, as {printable(preview['device'])}: {what}\n", soft_wrap=True)
    kinds: dict[str, list[str]] = {}  # names by what they are in every block
    for name in tensors:
        kinds.setdefault(re.sub(r"\.blk\.\d+\.", ".blk.*.", name), []).append(name)
    for kind, names in kinds.items():
        first = tensors[names[0]]
        shape = " x ".join(map(str, first["shape"]))
        out.print(f"  {kind:<44} {len(names):>3} times {shape:<12} {first['type']}", soft_wrap=True)
    out.print(f"\nwho reads it: {preview['who_reads']}", soft_wrap=True)
    out.print("everything that ever leaves this device, by occasion:")
    for occasion, things in by_occasion(preview["leaves"]).items():
        out.print(f"  {occasion + ':':<17} {things}", soft_wrap=True)
    out.print(f"stays: {', '.join(preview['stays'])}")
    if preview["changes_nothing_yet"]:
        out.print("nothing was trained yet: these are the names that the first update will have")
    if may_be_first:
        out.print("before it, from a fleet's first device: the initial generalist, made from a seed, unrounded")
    next_command("comigs-edge sync")


def _report(result: Sync, then: str, json: bool) -> None:
    from comigs_edge.commands.console import next_command, out, print_json, size, warn
    from comigs_edge.errors import Away

    outcome = result.outcome
    if json:
        print_json({
            "updates": [{"round": each.round, "weight": each.weight} for each in outcome.receipts],
            "taken_over": outcome.taken_over, 
            "restored_to": outcome.restored_to, "refused": outcome.refused, "waits": outcome.waits,
            "round_waits": outcome.heard.waiting, "kept_out": outcome.heard.kept_out,
            "offline": outcome.offline, "bytes_sent": outcome.bytes_sent, "bytes_received": outcome.bytes_received,
            "adapters_version": result.version, "next": then,
        })  # fmt: skip
    for note in result.notes:
        warn(note)
    if outcome.offline:
        raise Away(outcome.offline)
    if json:
        return
    if outcome.restored_to is not None:
        out.print(outcome.restoration, soft_wrap=True)
    for receipt in outcome.receipts:
        what = f"an update to round {receipt.round}, it counts {receipt.weight:.2f}"
        out.print(f"brought {what if receipt.round else 'the initial generalist'} ({size(outcome.bytes_sent)})")
    if outcome.had_arrived:
        out.print("the update that waited had arrived already, it counts")
    if outcome.taken_over is not None:
        received = size(outcome.bytes_received)
        out.print(f"took over generalist {outcome.taken_over} ({received}), as version {result.version} of your model")
    if outcome.refused is not None and outcome.judgement is not None:
        before, after, _ = outcome.judgement
        out.print(
            f"generalist {outcome.refused} is worse for your text ({before:.3f} to {after:.3f} nats a token): kept the old one"
        )
    if outcome.waits:
        remedy = (
            "" if outcome.heard.kept_out else " for the next round, it is brought by: comigs-edge sync, or by the next training"
        )
        out.print(f"an update waits{remedy}", soft_wrap=True)
    elif not (outcome.receipts or outcome.had_arrived) and outcome.taken_over is None and outcome.refused is None:
        out.print("there is nothing new")
    if waiting := outcome.heard.waiting:
        out.print(waiting)
    next_command(then)
