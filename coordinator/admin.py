"""What the person who runs the coordinator can do, whether it is running or not.

A running coordinator is the only user of its ledger, so the commands reach it through a socket in its folder, which only its
owner can open. If no coordinator runs, the command takes the folder's lock and does the work itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shlex
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from coordinator.addresses import PORT
from coordinator.ledger import check, config, overview
from coordinator.ledger.database import Database
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.folder import Folder, check_whole, is_empty
from coordinator.ledger.private import PrivateRounds
from coordinator.ledger.restoration import BACKUP, RESTORE
from coordinator.ledger.roster import show_roster, use_roster
from coordinator.protocol.errors import CoordinatorError, Refused

SOCKET = "admin.sock"
Result = dict[str, Any]  # of an operation, as JSON


@dataclass(frozen=True)
class Context:
    """What the operations work on."""

    fleet: Fleet
    folder: Folder
    started: float
    version: str
    private: PrivateRounds | None = None


def _invite(context: Context, name: str | None = None, address: str | None = None) -> Result:
    address = address or context.fleet.database.fact("address")
    if address is None:
        raise CoordinatorError(
            "nobody knows the coordinator's address yet; start it, or name it with --address https://HOST:PORT"
        )
    return context.fleet.members.invite(name, address, context.folder.pin)


def _backup(context: Context) -> Result:
    """What a backup holds, in a folder among the uploads, since a service may write nowhere else: a copy of the ledger, the rest
    as links, which take no room and outlive what they link to.
    """
    folder = context.folder
    wanted, (free, _) = 2 * folder.ledger.stat().st_size, context.fleet.payloads.disk()
    if free < wanted:
        raise CoordinatorError(
            f"a copy of the ledger needs {wanted / 1e6:,.1f} MB in {folder.root} for a moment, and {free / 1e6:,.1f} MB are "
            "free; make room on its disk"
        )
    made = folder.root / "uploads" / f"backup-{secrets.token_hex(8)}"
    made.mkdir(mode=0o700)
    try:
        context.fleet.database.backup(made / "coordinator.db")
        with contextlib.closing(Database(made / "coordinator.db")) as ledger:
            ledger.set_fact(BACKUP, str(context.fleet.clock()))
        if context.fleet.has_settings_file:
            shutil.copyfile(folder.root / "config.toml", made / "config.toml")
        else:
            (made / "config.toml").write_text(config.template(context.fleet.config))
        for name in ("keys", "payloads"):
            shutil.copytree(folder.root / name, made / name, copy_function=_link)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return {"file": str(made), "port": context.fleet.database.fact("port")}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


OPERATIONS: dict[str, Callable[..., Result]] = {
    "invite": _invite,
    "backup": _backup,
    "check": lambda context: check.check(context.fleet.database, context.fleet.payloads, context.fleet.chain.signing_key),
    "restored": lambda context: msgspec.to_builtins(context.fleet.restore()),
    "status": lambda context: {
        **overview.overview(context.fleet, context.started, context.version),
        **overview.windows(context.fleet, context.private),
    },
    "devices": lambda context: {"devices": overview.devices(context.fleet)},
    "rounds": lambda context, last=200: {"rounds": overview.rounds_table(context.fleet, last)},
    "roster": lambda context: show_roster(context.fleet),
    "use_roster": lambda context, roster: use_roster(context.fleet, roster),
    "revoke": lambda context, name: context.fleet.revoke(name),
}


def _perform(context: Context, operation: str, arguments: dict[str, Any]) -> Result:
    try:
        return OPERATIONS[operation](context, **arguments)
    except Refused as error:
        raise CoordinatorError(error.message) from error
    except OSError as error:
        raise CoordinatorError(f"the system refused: {error}") from error
    except sqlite3.OperationalError as error:
        raise CoordinatorError(
            f"the ledger in {context.folder.root} cannot be written ({error}); make room on its disk"
        ) from error


def application(context: Context) -> web.Application:
    """The operations for the socket: POST /NAME with a JSON object of arguments."""

    async def run(request: web.Request) -> web.Response:
        operation = request.match_info["name"]
        try:
            if operation not in OPERATIONS:
                raise CoordinatorError("the running coordinator does not know this; restart it, it may be an older version")
            return web.json_response(_perform(context, operation, await request.json()))
        except (TypeError, ValueError, OverflowError) as error:
            sentence = f"the running coordinator does not understand: {error}"
        except CoordinatorError as error:
            sentence = str(error)
        return web.json_response({"error": sentence}, status=400)

    app = web.Application()
    app.router.add_post("/{name}", run)
    return app


def call(root: Path, version: str, operation: str, **arguments: Any) -> Result:
    """Result of an operation, by the running coordinator or in this process; raises `CoordinatorError`."""
    if not (ledger := root / "coordinator.db").exists():
        check_whole(root)
    if not ledger.exists():
        raise CoordinatorError(f"there is no coordinator in {root}; start one with: comigs-coordinator serve --data {root}")
    answered = _ask(root, operation, arguments)
    if answered is not None:
        return answered
    with Folder.open(root) as folder, folder.fleet(time.time) as fleet:
        return _perform(Context(fleet, folder, time.time(), version), operation, arguments)


def examine(root: Path, repair: bool) -> Result:
    """What is sound, damaged and lost in the folder; a coordinator that runs has mended what it could when it started."""
    if is_empty(root):
        raise CoordinatorError(f"there is no coordinator in {root}; name its folder with --data")
    check_whole(root)
    if not (ledger := root / "coordinator.db").exists():
        raise CoordinatorError(
            f"{ledger} is gone; restore a backup, or begin a new fleet: comigs-coordinator serve --data {root}"
        )
    found = _ask(root, "check", {})
    if found is not None and repair:
        raise CoordinatorError("a coordinator runs in this folder; stop it, and type the command again")
    found = check.check_folder(root, repair) if found is None else found
    if found["damaged"] and not repair:
        then = f"comigs-coordinator check --repair --data {shlex.quote(str(root))}, while the coordinator does not run"
    else:
        then = (
            RESTORE if found["damaged"] or found.get("needed") else f"comigs-coordinator status --data {shlex.quote(str(root))}"
        )
    return {**found, "next": then}


def backup(root: Path, version: str, target: Path) -> Result:
    """Writes a backup to `target`; a failure leaves the old file. Raises `CoordinatorError`, first if there is no room."""
    found = call(root, version, "backup")
    made = Path(found["file"])
    part = target.with_name(f".{target.name}.part")
    try:
        _check_room(made, target)
        _pack(made, part)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CoordinatorError(f"{target} cannot be written ({error.strerror}); name another file") from error
    finally:
        made.unlink() if made.is_file() else shutil.rmtree(made, ignore_errors=True)
    port = "" if found.get("port") in (None, str(PORT)) else f" --port {found['port']}"
    restore = f"mkdir DIR && tar -xf FILE -C DIR && comigs-coordinator serve --data DIR{port}"
    return {"file": str(target), "bytes": target.stat().st_size, "restore": restore}


def _check_room(made: Path, target: Path) -> None:
    wanted = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    if (free := shutil.disk_usage(target.parent).free) < wanted:
        raise CoordinatorError(
            f"{target} needs {wanted / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free there; make room, or name another file"
        )


def _pack(made: Path, part: Path) -> None:
    """One tar file, for its owner alone."""
    import tarfile  # a megabyte that the running coordinator does not need

    part.unlink(missing_ok=True)
    if made.is_file():  # by a coordinator that runs since an earlier version
        shutil.copyfile(made, part)
        part.chmod(0o600)
        return
    with (
        open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
        tarfile.open(fileobj=file, mode="w") as tar,
    ):
        for path in sorted(made.iterdir()):
            tar.add(path, path.name)


def _ask(root: Path, operation: str, arguments: dict[str, Any]) -> Result | None:
    """The running coordinator's answer; None if none is running."""
    with socket_path(root) as path:
        connection = _UnixConnection(path)
        try:
            connection.request("POST", f"/{operation}", json.dumps(arguments), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            result: Result = json.loads(answer.read())
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CoordinatorError(f"the running coordinator did not answer ({error}); try again, or restart it") from error
        finally:
            connection.close()
    if answer.status != 200:
        raise CoordinatorError(result["error"])
    return result


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@contextlib.contextmanager
def socket_path(root: Path) -> Iterator[str]:
    """The socket's path, in a short form: the system allows about a hundred characters."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
