"""`comigs-coordinator roster`: the devices of a private fleet, signed by its owner with a key that no coordinator has."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from coordinator import options as types
from coordinator.protocol import VERSION
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.text import printable
from coordinator.shown import print_table

if TYPE_CHECKING:
    from coordinator.protocol.private.messages import Roster, SignedRoster

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    Run = Callable[[argparse.Namespace], None]
    Add = Callable[[Commands, str, str, Run], argparse.ArgumentParser]


def add(commands: Commands, add_command: Add) -> None:
    """Adds the command and its own: two for a machine of the owner's, two for the coordinator's."""
    text = "The devices of a private fleet, signed by its owner: its coordinator can make up none."
    actions = commands.add_parser("roster", help=text, description=text).add_subparsers(required=True, metavar="COMMAND")
    made = _add_offline(
        actions, "new-key", "Make the owner's key, on a machine of yours that is not the coordinator's.", _make_key,
        "comigs-coordinator roster new-key owner.key",
    )  # fmt: skip
    made.add_argument("key", type=types.file, metavar="FILE", help="the private key is written there; keep it offline")
    signed = _add_offline(
        actions, "sign", "Sign the list of the fleet's devices, where the owner's key is.", _sign,
        "comigs-coordinator roster sign owner.key devices.txt roster.json --fleet 0f1e2d3c4b5a6978",
    )  # fmt: skip
    signed.add_argument("key", type=types.file, metavar="KEYFILE", help="of new-key")
    signed.add_argument(
        "list", type=types.file, metavar="LIST",
        help="text with a line for each device: its key, as `comigs-edge join` prints it on the device itself, and its name",
    )  # fmt: skip
    signed.add_argument(
        "roster", type=types.file, metavar="ROSTER", help="the file to write; one that is there is followed by it"
    )
    signed.add_argument("--fleet", metavar="ID", help="as `comigs-edge join` prints it; default: that of the roster before")
    signed.add_argument(
        "--number", type=types.number, metavar="N",
        help="of the roster: devices follow none with a smaller one than they have seen; default: the time, or one more",
    )  # fmt: skip
    used = add_command(actions, "use", "Show a signed roster to the devices, from now on; or none.", _use)
    used.add_argument(
        "roster", type=types.file, metavar="ROSTER",
        help="none: no roster any more; devices that were told its key give nothing until their people say otherwise",
    )  # fmt: skip
    used.epilog = "Example: comigs-coordinator roster use roster.json"
    shown = add_command(actions, "show", "Show the roster in force, and which devices are not in it.", _show)
    shown.epilog = "Example: comigs-coordinator roster show"


def _add_offline(commands: Commands, name: str, text: str, run: Run, example: str) -> argparse.ArgumentParser:
    """A command that needs no coordinator."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, epilog=f"Example: {example}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _print(options: argparse.Namespace, facts: dict[str, Any], lines: list[str], then: str) -> None:
    if options.json:
        print(json.dumps({**facts, "next": then}, indent=1, ensure_ascii=False))
    else:
        print("\n".join(map(printable, lines)) + f"\n\nnext: {then}")


def _make_key(options: argparse.Namespace) -> None:
    from coordinator.protocol import keys

    key, file = keys.new_key(), options.key
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as written:
            _put(written, keys.key_to_pem(key))
    except FileExistsError as error:
        raise CoordinatorError(f"{file} is there already, and devices may know its key; name another file") from error
    except OSError as error:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)  # a part of a key
        raise CoordinatorError(f"{file} cannot be written ({error.strerror}); name another file") from error
    public = keys.public_text(key)
    lines = [f"roster key {public}", f"private    {file}: keep it, and a copy of it, where no coordinator is"]
    _print(options, {"key": public, "file": str(file)}, lines, f"on each device: comigs-edge join LINK --roster-key {public}")


def _sign(options: argparse.Namespace) -> None:
    from coordinator.protocol import keys
    from coordinator.protocol.messages import decode, encode
    from coordinator.protocol.private.messages import Roster
    from coordinator.protocol.private.roster import sign_roster

    key = keys.key_from_pem(_read(options.key), options.key)
    before = _before(options.roster, keys.public_text(key), options.fleet) if options.roster.exists() else None
    fleet = options.fleet or (before and before.fleet)
    if not fleet:
        raise CoordinatorError("name the fleet, as `comigs-edge join` prints it, with --fleet ID")
    devices, known = _read_list(options.list), before.devices if before else {}
    least = before.serial + 1 if before else 0
    if options.number is not None and options.number < least:
        raise CoordinatorError(
            f"{options.roster} has the number {least - 1}, and devices follow no smaller one; name a larger one"
        )
    number = max(int(time.time()), least) if options.number is None else options.number
    roster = Roster(fleet=fleet, serial=number, devices=devices)
    try:
        decode(encode(roster), Roster)  # as devices do
    except ValueError as error:  # msgspec's own are such
        raise CoordinatorError(f"no device reads such a roster ({error}); look at --fleet and --number") from error
    _write(options.roster, encode(sign_roster(key, roster)))
    lines = [f"roster     {roster.serial} of {len(devices)} devices in {options.roster}"]
    lines += [f"added      {each} {devices[each]}" for each in devices.keys() - known.keys()]
    lines += [f"removed    {each} {known[each]}" for each in known.keys() - devices.keys()]
    facts = {"file": str(options.roster), "fleet": fleet, "serial": roster.serial, "devices": devices}
    _print(options, facts, lines, f"on the coordinator's machine: comigs-coordinator roster use {options.roster}")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CoordinatorError(f"{file} cannot be read ({error.strerror}); name another file") from error


def _before(file: Path, public_key: str, fleet: str | None) -> Roster:
    """The roster that the new one follows; raises `CoordinatorError` where that is another owner's or fleet's."""
    signed, roster = _open(file)
    if signed.key != public_key or fleet not in (None, roster.fleet):
        raise CoordinatorError(f"{file} is the roster of another key or fleet ({roster.fleet}); name another file to write")
    return roster


def _open(file: Path) -> tuple[SignedRoster, Roster]:
    from coordinator.protocol.private.roster import read_roster

    return read_roster(_read(file), file)


def _read_list(file: Path) -> dict[str, str]:
    """Public key -> name of each device; raises `CoordinatorError` for a line that names none."""
    from coordinator.protocol.private.messages import LEAST
    from coordinator.protocol.private.roster import MOST_LISTED, canonical

    devices: dict[str, str] = {}
    for number, line in enumerate(_read(file).decode("utf-8-sig", errors="replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            key, name = canonical(words[0]), types.device(words[1] if len(words) == 2 else "")
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise CoordinatorError(
                f"{file}, line {number}: {line[:80]!r} is not a device's key and its name; `comigs-edge join` prints the key"
            ) from error
        if key in devices:
            raise CoordinatorError(f"{file}, line {number}: the key of {name} stands there twice; leave one of the lines out")
        devices[key] = name
    if not LEAST <= len(devices) <= MOST_LISTED:
        raise CoordinatorError(f"{file} has {len(devices)} devices, and a private fleet has {LEAST} to {MOST_LISTED}")
    return devices


def _write(file: Path, data: bytes) -> None:
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as written:
            _put(written, data)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CoordinatorError(f"{file} cannot be written ({error.strerror}); name another file") from error


def _put(file: BinaryIO, data: bytes) -> None:
    """All of it is on the disk when this returns."""
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _use(options: argparse.Namespace) -> None:
    from coordinator import admin
    from coordinator.ledger.roster import NONE

    text = NONE
    if str(options.roster) != NONE:
        _open(options.roster)
        text = _read(options.roster).decode()
    _report(options, admin.call(options.data, VERSION, "use_roster", roster=text))


def _show(options: argparse.Namespace) -> None:
    from coordinator import admin

    _report(options, admin.call(options.data, VERSION, "roster"))


def _report(options: argparse.Namespace, found: dict[str, Any]) -> None:
    if options.json or found["roster"] is None:
        lines = [
            "no roster: whoever is in the fleet takes part in private windows; a device that was told a key gives nothing to "
            "them until its person says: comigs-edge join LINK --roster-key none"
        ]
        _print(options, found, lines, "comigs-coordinator devices")
        return
    print(f"roster     {found['serial']}, signed with {found['key']}")
    rows = [(name, "in the roster") for name in found["devices"]]
    print_table([("name", ""), *rows, *((name, "not in it: no private window takes its updates") for name in found["unlisted"])])
    print("\nnext: comigs-coordinator status")
