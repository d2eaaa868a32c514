"""Runs the coordinator: TLS socket for devices, socket in the folder for its owner, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import resource
import signal
import socket
import sqlite3
import ssl
from asyncio import sslproto
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from coordinator import addresses, admin
from coordinator.ledger import config
from coordinator.ledger.clock import Clock
from coordinator.ledger.folder import Folder
from coordinator.ledger.payloads import DiskFailure
from coordinator.ledger.private import open_private
from coordinator.protocol.errors import CoordinatorError
from coordinator.web.door import STRANGERS, Door
from coordinator.web.server import Server
from coordinator.web.timekeeper import keep_time

IDLE_SECONDS = 10.0  # for a request's head to come, and between two requests
STOP_SECONDS = 5.0  # for requests in progress
DESCRIPTORS = 65_536  # wanted; where the system gives fewer, strangers may have a quarter
TLS_BUFFER = 1 << 15  # bytes of each connection; asyncio's own is 256 KiB
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h: setting the first keeps glibc from raising it

log = logging.getLogger("comigs-coordinator")


def serve(
    root: Path, values: dict[str, Any], version: str, ready: Callable[[str, bytes, Folder], None], *,
    host: str, port: int, address: str | None, is_open: bool,
) -> None:  # fmt: skip
    """Serves until SIGTERM or Ctrl-C; calls `ready` with address, pin and folder when devices can connect.

    `values` are settings in place of config.toml's; None changes nothing.
    """
    _keep_memory_small()
    _close_to_others(root)
    try:
        with Folder.open(root) as folder, folder.fleet(Clock(), values) as fleet:
            config.note(fleet.database, fleet.config, fleet.has_settings_file)
            fleet.warn_where_nothing_is_left()
            with open_private(fleet, root) as private:
                server = Server(fleet, version, is_open, private)
                asyncio.run(_run(server, folder, ready, host=host, port=port, address=address))
    except (sqlite3.OperationalError, DiskFailure) as error:
        raise CoordinatorError(
            f"{root} cannot be written ({error}); make room on its disk or check it, and start again"
        ) from error


def _close_to_others(root: Path) -> None:
    """Nobody else may put files in place of the coordinator's; raises `CoordinatorError` where that cannot be had."""
    mode = root.stat().st_mode if root.exists() else 0
    if not mode & 0o022:
        return
    try:
        root.chmod(mode & 0o7755)
    except OSError as error:
        raise CoordinatorError(
            f"others may write in {root} ({error.strerror}); its owner should type: chmod go-w {root}"
        ) from error
    log.warning("others could write in %s; now only its owner can", root)


def _keep_memory_small() -> None:
    """Connections get small TLS buffers, and glibc gives back what is freed; without this the peak is twice as high."""
    sslproto.SSLProtocol.max_size = TLS_BUFFER
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 17)
        mallopt(M_ARENA_MAX, 2)


async def _run(
    server: Server, folder: Folder, ready: Callable[[str, bytes, Folder], None], *, host: str, port: int, address: str | None
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(server.application(), keepalive_timeout=IDLE_SECONDS, access_log=None, shutdown_timeout=STOP_SECONDS,
                           auto_decompress=False, max_line_size=4096, max_field_size=8190, max_headers=64)  # fmt: skip
    own = web.AppRunner(
        admin.application(admin.Context(server.fleet, folder, server.started, server.version, server.private)), access_log=None
    )
    clock = asyncio.create_task(
        keep_time(server.fleet, server.wake, server.private)
    )  # it begins with rounds that a crash left closed and unpublished
    clock.add_done_callback(lambda task: stop.set())
    try:
        await runner.setup()
        await own.setup()
        door, port = await _open_door(runner, folder, host, port)
        address = address or str(await asyncio.to_thread(addresses.invited, host, port))
        for name, value in (("address", address), ("port", str(port))):
            if server.fleet.database.fact(name) != value:
                server.fleet.database.set_fact(name, value)
        with admin.socket_path(folder.root) as path:
            Path(path).unlink(missing_ok=True)
            await web.UnixSite(own, path).start()
            os.chmod(path, 0o600)
            ready(address, folder.pin, folder)
            await stop.wait()
        await door.close()
    finally:
        clock.cancel()
        await own.cleanup()
        await runner.cleanup()
        with contextlib.suppress(OSError):
            (folder.root / admin.SOCKET).unlink()
        with contextlib.suppress(asyncio.CancelledError):
            await clock  # an error there ends the process: without the clock no round closes
    log.info("stopped")


async def _open_door(runner: web.AppRunner, folder: Folder, host: str, port: int) -> tuple[Door, int]:
    """The door, open, and its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder.certificate, folder.tls_key)
    assert runner.server is not None
    door = Door(runner.server, context, min(STRANGERS, _raise_limit_of_descriptors() // 4))
    try:
        listening = await asyncio.to_thread(addresses.listen, host, port)
    except socket.gaierror as error:
        raise CoordinatorError(f"{host} is no address of this machine ({error.strerror}); name one with --host") from error
    except OSError as error:
        option = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CoordinatorError(f"port {port} of {host} cannot be used ({reason}); choose another with {option}") from error
    door.open(listening)
    return door, listening[0].getsockname()[1]


def _raise_limit_of_descriptors() -> int:
    """As many open files and connections as the system lets this process have, up to `DESCRIPTORS`; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
