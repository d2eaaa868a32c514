"""`comigs-coordinator flare`: the fleet of this folder on NVIDIA FLARE, in place of `serve`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator import addresses
from coordinator import options as types

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    Add = Callable[[Commands, str, str, Callable[[argparse.Namespace], None]], argparse.ArgumentParser]

LOOPBACK, PORT, DAYS = "localhost", 8002, 360


def add(commands: Commands, add_command: Add) -> None:
    """Adds the command and its own."""
    text = "Let NVIDIA FLARE carry this fleet, in place of serve; the extra comigs-edge[flare]."
    actions = commands.add_parser("flare", help=text, description=text).add_subparsers(required=True, metavar="COMMAND")
    export = add_command(actions, "export", "Write what a FLARE project needs: project.yml and the job.", _export)
    export.add_argument("folder", type=types.folder, metavar="FOLDER")
    export.add_argument(
        "--site", action="append", default=[], type=types.device, metavar="NAME",
        help="a device that takes part, beside those that are in the fleet already; may be said again",
    )  # fmt: skip
    export.add_argument(
        "--host", default=LOOPBACK, help=f"the server's name in the network; default: {LOOPBACK}, only this machine"
    )
    export.add_argument("--port", type=addresses.check_port, default=PORT, help=f"default: {PORT}")
    export.add_argument("--rounds", type=types.count, default=10, metavar="COUNT", help="of one job; default: 10")
    export.add_argument("--minutes", type=types.count, default=60, metavar="COUNT", help="that a job lasts at most; default: 60")
    export.add_argument("--days", type=types.count, default=DAYS, help=f"that the certificates hold; default: {DAYS}")
    run = add_command(actions, "run", "Run FLARE's server, and submit the job again and again.", _run)
    run.add_argument("folder", type=types.folder, metavar="FOLDER", help="the project's, with its kits")
    run.add_argument("--no-server", action="store_true", help="submit jobs only: FLARE's server runs elsewhere")


def _members(data: Path) -> list[str]:
    """Names of the devices of the fleet in this folder, if one has begun there; raises `CoordinatorError` for a private one."""
    from coordinator.flare.desk import PRIVATE, check_plain
    from coordinator.ledger import config
    from coordinator.ledger.clock import Clock
    from coordinator.ledger.folder import Folder, is_empty
    from coordinator.protocol.errors import CoordinatorError

    if is_empty(data):
        settings = config.read(data / "config.toml", makes=False)
        if settings is not None and settings.rounds.private:
            raise CoordinatorError(PRIVATE.format(data))
        return []
    with Folder.open(data) as folder, folder.fleet(Clock()) as fleet:
        check_plain(fleet)
        return [each.name for each in fleet.members.devices.values() if each.revoked is None]


def _export(options: argparse.Namespace) -> None:
    from coordinator.flare import export

    sites = _members(options.data) + list(options.site)
    sites = list(dict.fromkeys(sites))
    export.export(
        options.folder, options.data, sites, host=options.host, port=options.port, rounds=options.rounds, minutes=options.minutes,
        valid_days=options.days,
    )  # fmt: skip
    provision = f"nvflare provision -p {options.folder}/project.yml -w {options.folder}/kits"
    if options.json:
        print(json.dumps({"project": f"{options.folder}/project.yml", "job": f"{options.folder}/{export.JOB}", "sites": sites,
                          "next": provision}, indent=1))  # fmt: skip
        return
    print(f"project    {options.folder}/project.yml, of {len(sites)} sites and the server {options.host}:{options.port}")
    print(f"job        {options.folder}/{export.JOB}, of {options.rounds} rounds")
    print(f"\nnext: {provision}\nthen: comigs-coordinator flare run {options.folder}")


def _run(options: argparse.Namespace) -> None:
    from coordinator.flare import export
    from coordinator.flare.supervisor import Supervisor, is_counting
    from coordinator.protocol import kits

    if not is_counting(options.data):  # else a job of the fleet runs already, which has looked for itself
        _members(options.data)
    server, admin = export.kits(options.folder)
    say(kits.say_end(kits.find(admin))[0])
    process = None if options.no_server else kits.Process(kits.find(server), options.folder / "server.log")
    stop, supervisor = threading.Event(), Supervisor(admin, options.folder / export.JOB, options.data, say)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    told = time.monotonic()
    try:
        while not stop.wait(2.0):
            if process is not None:
                process.keep()
            supervisor.look()
            if time.monotonic() - told > 86400:
                told = time.monotonic()
                say(kits.say_end(admin)[0])
    finally:
        supervisor.close()
        if process is not None:
            process.stop()
            supervisor.wait_for_the_end()
    os._exit(0)  # FLARE's session has threads that do not end with it


def say(sentence: str) -> None:
    """To whoever reads the log."""
    print(sentence, file=sys.stderr, flush=True)
