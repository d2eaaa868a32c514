"""`comigs-coordinator`: the command line of the coordinator. Standard library only, so that it starts at once."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator import addresses, flare_command, roster_command
from coordinator import options as types
from coordinator.addresses import PORT
from coordinator.ledger.config import Training
from coordinator.protocol import VERSION
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.rounds import Rules
from coordinator.protocol.text import printable
from coordinator.shown import print_table, show_size, show_time

if TYPE_CHECKING:
    from coordinator.ledger.folder import Folder
    from coordinator.systemd import Outcome

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

HOST = "::"


def main(arguments: list[str] | None = None) -> None:
    """The entry point; exits with 1 for an error that the operator can mend, with 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    os.umask(0o077)
    try:
        options.run(options)
    except CoordinatorError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="comigs-coordinator",
        description="Brings a fleet's devices together: averages their generalists, sees no text.",
        epilog="First steps: comigs-coordinator serve, then in another terminal: comigs-coordinator invite",
    )
    parser.add_argument("--version", action="version", version=f"comigs-coordinator {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = _add_command(commands, "serve", "Run the coordinator.", _serve)
    _add_address_options(serve)
    for section in (Rules, Training):
        for field in fields(section):
            kind = types.flag(section, field.name, field.default)
            serve.add_argument(f"--{field.name.replace('_', '-')}", help="in place of config.toml's", **kind)

    invite = _add_command(commands, "invite", "Print a one-time link for a device; it is good for 24 hours.", _invite)
    invite.add_argument("--name", help="the device's name, as in kitchen-pi")
    invite.add_argument("--address", type=addresses.check_address, metavar="URL", help="in place of the one that serve found")
    _add_command(commands, "status", "Show the fleet and its open round.", _status)
    _add_command(commands, "devices", "Show the devices.", _devices)
    rounds = _add_command(commands, "rounds", "Show the rounds.", _rounds)
    rounds.add_argument("--last", type=types.count, metavar="COUNT", default=20, help="how many; default: 20")
    _add_command(commands, "revoke", "Remove a device from the fleet, at once.", _revoke).add_argument("name", type=types.device)
    backup = _add_command(commands, "backup", "Write ledger, keys, settings and generalists into one tar file.", _backup)
    backup.add_argument("file", nargs="?", help="default: comigs-coordinator-DATE.tar")
    text = "Read everything that is kept, and say what is sound, damaged and lost; exits with 1 if something is damaged."
    check = _add_command(commands, "check", text, _check)
    check.add_argument("--repair", action="store_true", help="leave out what is damaged, and recover a damaged ledger")
    text = "Tell the devices that the coordinator goes on from an older copy of its folder; a restored backup says so by itself."
    _add_command(commands, "restored", text, _restored)
    _add_service(commands)
    for more in (flare_command, roster_command):
        more.add(commands, _add_command)
    return parser


def _add_address_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default=HOST, help="address to listen on; default: all of this machine's, IPv4 and IPv6")
    parser.add_argument("--port", type=addresses.check_port, default=PORT, help=f"default: {PORT}; 0 takes a free one")
    parser.add_argument(
        "--address", type=addresses.check_address, metavar="URL", help="what invitations say, as in https://pi.local:8443"
    )
    parser.add_argument("--open", action="store_true", help="show the status page and /metrics to everybody")


def _add_service(commands: Commands) -> None:
    text = "Let systemd run the coordinator, from now on and at every start of this machine."
    parser = commands.add_parser("service", help=text, description=text)
    actions = parser.add_subparsers(required=True, metavar="COMMAND")
    install = _add_command(actions, "install", "Write the unit and start it.", _service_install)
    _add_address_options(install)
    install.add_argument("--print", action="store_true", help="print the unit, and do nothing")
    uninstall = _add_command(actions, "uninstall", "Stop the coordinator and delete the unit; the data stay.", _service_uninstall)
    status = _add_command(actions, "status", "Show whether systemd runs the coordinator.", _service_status)
    for action in (install, uninstall, status):
        action.add_argument("--system", action="store_true", help="of the whole machine, as root; default: your own")


def _add_command(commands: Commands, name: str, text: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument(
        "--data", type=types.folder, default=_default_folder(), metavar="DIR", help=f"default: {_default_folder()}"
    )
    if name not in ("serve", "run"):
        parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _default_folder() -> Path:
    named = os.environ.get("COMIGS_COORDINATOR_DATA")
    share = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(named or f"{share}/comigs-coordinator").expanduser()


def _named(options: argparse.Namespace) -> str:
    """The words of a command that name the folder, if it is not the usual one."""
    return "" if options.data == _default_folder() else f" --data {shlex.quote(str(options.data))}"


def _serve(options: argparse.Namespace) -> None:
    from coordinator.log import start_log
    from coordinator.serve import serve

    start_log(sys.stderr)
    values = {field.name: getattr(options, field.name) for field in (*fields(Rules), *fields(Training))}

    def ready(address: str, pin: bytes, folder: Folder) -> None:
        print(f"coordinator  {address}")
        print(f"fingerprint  {pin.hex()}")
        print(f"data         {folder.root}")
        print(f"\nnext, in another terminal: comigs-coordinator invite{_named(options)}", flush=True)

    serve(options.data, values, VERSION, ready,
          host=options.host, port=options.port, address=options.address, is_open=options.open)  # fmt: skip


def _call(options: argparse.Namespace, operation: str, **arguments: object) -> dict[str, Any]:
    from coordinator import admin

    result = admin.call(options.data, VERSION, operation, **arguments)
    if _print_json(options, result):
        sys.exit(0)
    return result


def _print_json(options: argparse.Namespace, result: dict[str, Any]) -> bool:
    """Prints the result if JSON was asked for; returns whether it was."""
    if options.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    return bool(options.json)


def _invite(options: argparse.Namespace) -> None:
    invitation = _call(options, "invite", name=options.name, address=options.address)
    print(invitation["link"])
    until = show_time(invitation["expires"])
    print(f"{invitation.get('note') or ''}\nnext, on the device, until {until}: comigs-edge join LINK", file=sys.stderr)


def _status(options: argparse.Namespace) -> None:
    status = _call(options, "status")
    print(f"fleet      {status['fleet']}, {status['devices']} devices, {status['active']} of them active")
    print(f"base       {printable(status['base']['name']) if status['base'] else 'none yet: the first device brings it'}")
    print(f"generalist {status['newest_round'] if status['newest_round'] >= 0 else 'none yet'}")
    closes = f"closes at {status['goal']}"
    if status["deadline"] is not None and status["quorum"] < status["goal"]:
        closes += f", or at {show_time(status['deadline'])} with {status['quorum']}"
    print(f"round      {status['open_round']}: {status['updates']} updates, {closes}")
    for window in status.get("private") or []:
        print(f"window     {window['stage']}: {window['given']} of {max(window['devices'], window['needed'])} devices")
    for each in (status.get("ended") or [])[:3]:
        print(f"window     given up: {each['reason']}" if each["reason"] else f"window     summed, round {each['round']}")
    print(f"moved      {show_size(status['bytes_in'])} in, {show_size(status['bytes_out'])} out")
    print(f"disk       {show_size(status['disk_free'])} free")
    alarms = [f"{name}: {reason}" for name, reason in status.get("alarms", {}).items()]
    for word, sentences in (("note", status.get("notes", [])), ("lost", status.get("lost", [])), ("look at", alarms)):
        for sentence in sentences:
            print(f"{word:<10} {sentence}")
    print("\nnext: comigs-coordinator " + ("rounds" if status["devices"] else "invite") + _named(options))


def _devices(options: argparse.Namespace) -> None:
    rows = _call(options, "devices")["devices"]
    table = [("name", "last contact", "updates", "last round", "in", "out", "")]
    table += [
        (row["name"], show_time(row["last_contact"]), row["updates"], "-" if row["last_round"] is None else row["last_round"],
         show_size(row["bytes_in"]), show_size(row["bytes_out"]), "revoked" if row["revoked"] else row.get("alarm") or "")
        for row in rows
    ]  # fmt: skip
    print_table(table)
    print("\nnext: comigs-coordinator " + ("rounds" if rows else "invite") + _named(options))


def _rounds(options: argparse.Namespace) -> None:
    rows = _call(options, "rounds", last=options.last)["rounds"]
    table = [("round", "opened", "closed", "devices", "in", "validation loss", "")]
    for row in rows:
        loss = row["validation_loss"]
        note = "" if row["rolled_back_to"] is None else f"generalist {row['rolled_back_to']} again"
        table.append((
            row["number"], show_time(row["opened"]), show_time(row["closed"]) if row["closed"] else "open", row["devices"],
            show_size(row["bytes_in"]), "-" if loss is None else f"{loss:.4f}", note,
        ))  # fmt: skip
    print_table(table)
    print(f"\nnext: comigs-coordinator devices{_named(options)}")


def _revoke(options: argparse.Namespace) -> None:
    device = _call(options, "revoke", name=options.name)
    print(f"{printable(device['name'])} is not in the fleet any more; its next request is refused")
    print(f"\nnext, to have it back: comigs-coordinator invite --name {printable(device['name'])}{_named(options)}")


def _backup(options: argparse.Namespace) -> None:
    file = Path(options.file or f"comigs-coordinator-{time.strftime('%Y-%m-%d-%H%M%S')}.tar").absolute()
    from coordinator import admin

    backup = admin.backup(options.data, VERSION, file)
    if _print_json(options, backup):
        return
    print(f"{backup['file']}, {show_size(backup['bytes'])}: it holds the coordinator's keys, keep it safe")
    print(f"\nnext, to restore it where no coordinator is: {backup['restore']}")


def _check(options: argparse.Namespace) -> None:
    from coordinator import admin
    from coordinator.ledger import damage

    damage.log.setLevel(logging.ERROR)  # what is mended stands below
    found = admin.examine(options.data, options.repair)
    is_bad = bool(found["damaged"] or found.get("needed"))
    if not _print_json(options, found):
        for kind in ("repaired", "lost", "damaged", "needed"):
            for sentence in found.get(kind, []):
                print(f"{kind:<10} {printable(sentence)}")
        print("" if is_bad else "everything that is kept is sound\n")
        print(f"next: {found['next']}")
    sys.exit(1 if is_bad else 0)


def _restored(options: argparse.Namespace) -> None:
    print(f"the devices are told that the fleet goes on from generalist {_call(options, 'restored')['round']}")
    print("devices that were removed since the copy was made are members again; those that joined since are not")
    print(f"\nnext, look for such devices: comigs-coordinator devices{_named(options)}")


def _service_install(options: argparse.Namespace) -> None:
    from coordinator import service

    data = service.SYSTEM_DATA if options.system and options.data == _default_folder() else options.data.absolute()
    words = [word for name in ("host", "port", "address") if (value := getattr(options, name)) not in (HOST, PORT, None)
             for word in (f"--{name}", str(value))] + ["--open"] * options.open  # fmt: skip
    if options.print:
        print(service.unit(data, words, options.system), end="")
        return
    named = "" if data == _default_folder() else f" --data {shlex.quote(str(data))}"
    sudo = "sudo " if options.system else ""
    _show_outcome(options, service.install(data, words, options.system), f"{sudo}comigs-coordinator invite{named}")


def _service_uninstall(options: argparse.Namespace) -> None:
    from coordinator import service

    _show_outcome(options, service.uninstall(options.system), "comigs-coordinator serve")


def _show_outcome(options: argparse.Namespace, outcome: Outcome, then: str) -> None:
    files, left = [str(file) for file in outcome.files], outcome.left
    if _print_json(options, {"files": files, "left": left, "next": then}):
        return
    print("\n".join(f"unit       {file}" for file in files))
    if left:
        print("\nsystemd did not do these; type them where it runs:\n  " + "\n  ".join(left))
    print(f"\nnext: {then}")


def _service_status(options: argparse.Namespace) -> None:
    from coordinator import service, systemd

    file = systemd.folder(options.system) / service.UNIT
    state = {"file": str(file), "installed": file.exists(), "state": systemd.is_active(service.UNIT, options.system)}
    if _print_json(options, state):
        return
    print(f"unit       {file}{'' if state['installed'] else ', not installed'}\nstate      {state['state']}")
    log = f"journalctl{'' if options.system else ' --user'} --unit {service.UNIT}"
    print(f"\nnext: {log if state['installed'] else 'comigs-coordinator service install'}")


if __name__ == "__main__":
    main()
