"""`comigs-edge join` and `leave`: this device in a coordinator's fleet."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

from comigs_edge.commands.console import next_command, notes, out, print_json, warn
from comigs_edge.commands.settings import settings_of
from comigs_edge.home import folder as homes
from coordinator.protocol import keys
from coordinator.protocol.text import printable

MAX_LINK = 4096


def join(
    link: Annotated[
        str,
        typer.Argument(
            metavar="LINK",
            help="What `comigs-coordinator invite` printed: https://host:port#CODE; - reads it from standard input, for "
            "other users of this device can read a command line.",
        ),
    ],
    name: Annotated[Optional[str], typer.Option(help="This device's name in the fleet; default: the invitation's.")] = None,
    roster_key: Annotated[
        Optional[str],
        typer.Option(
            metavar="KEY",
            help="Of a private fleet's owner (`comigs-coordinator roster new-key`): private windows are shared only with devices "
            "whose keys the owner signed. Holds until another is said; none: from now on with any device.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Join a fleet: this device's generalist is averaged with the others'. Text, specialists and router never leave."""
    from comigs_edge.fleet import joining
    from comigs_edge.fleet.folder import FleetFolder
    from comigs_edge.fleet.generalist import describe_generalist
    from comigs_edge.fleet.leaving import who_reads
    from comigs_edge.fleet.roster import read_key
    from comigs_edge.training.next_step import find_next

    home = homes.locate()
    settings = settings_of(home)
    owner = None if roster_key is None else read_key(roster_key)
    if link == "-":
        link = sys.stdin.readline(MAX_LINK).strip()
    with home.lock("join"), notes.status("asking the coordinator"):
        generalist = describe_generalist(home, settings)
        member, said = joining.join(home, link, name, generalist, owner)
        public_key = keys.public_text(FleetFolder(home).key())
    for note in said:
        warn(note)
    then = find_next(home, settings, has_new_text=True)
    if json:
        print_json({
            "fleet": member.fleet, "device": member.device, "name": member.name, "address": member.address,
            "private": member.is_private, "public_key": public_key, "roster_key": member.roster_key, "next": then,
        })  # fmt: skip
        return
    weights = sum(rows * columns for rows, columns in generalist.tensors.values())
    out.print(f"joined the fleet at {printable(member.address)} as {printable(member.name)}", soft_wrap=True)
    out.print(
        f"what leaves: changes of the generalist's {weights / 1e6:.2f} million weights, every {member.local_steps} "
        f"expert steps, as {member.update_format}; `comigs-edge sync --dry-run` lists them",
        soft_wrap=True,
    )
    out.print(f"who reads it: {who_reads(member.is_private, bool(member.roster_key))}", soft_wrap=True)
    if member.is_private:
        out.print(f"for a roster of its owner's: fleet {printable(member.fleet)}, this device's key {public_key}", soft_wrap=True)
    out.print("what stays: your text, specialists, router and optimiser")
    next_command(then)


def leave() -> None:
    """Leave the fleet; your model stays, and what the fleet has not received yet waits for the day you join it again."""
    from comigs_edge.fleet.folder import FleetFolder
    from comigs_edge.training.next_step import find_next

    home = homes.locate()
    settings = settings_of(home)
    with home.lock("leave"):
        folder = FleetFolder(home)
        member = folder.membership()
        folder.leave()
    name = printable(member.name)
    text = f"{name} trains alone again; to have it forgotten there: comigs-coordinator revoke {name}"
    out.print(text, soft_wrap=True)
    next_command(find_next(home, settings, has_new_text=True))
