"""The coordinator as a service of systemd: a unit of the user's by default, of the whole system where root asks for it.

A user's unit runs with the user's rights, except those that it does not need. The system's runs as a user that exists only
while it runs (DynamicUser), or, if its folder exists already, as the owner of that folder.
"""

from __future__ import annotations

from pathlib import Path

from coordinator import systemd
from coordinator.protocol.errors import CoordinatorError

UNIT = "comigs-coordinator.service"
SYSTEM_DATA = Path("/var/lib/comigs-coordinator")

TEMPLATE = """\
[Unit]
Description=comigs-edge coordinator: averages a fleet's generalists
{after}\
# It may be down for long, a disk that failed for instance (exit status 74): systemd keeps trying, slowly.
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
Restart=on-failure
RestartSec=15
TimeoutStopSec=30
MemoryMax=1G
TasksMax=512
LimitNOFILE=65536
UMask=0077
{user}\
{sandbox}\
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6

[Install]
WantedBy={target}
"""


def unit(data: Path, arguments: list[str], system: bool) -> str:
    """The unit's text; `arguments` are more words for `comigs-coordinator serve`."""
    serve = [*systemd.program("comigs-coordinator", "coordinator"), "serve", "--data", str(data), *arguments]
    return TEMPLATE.format(
        sandbox=systemd.SANDBOX,
        after="Wants=network-online.target\nAfter=network-online.target\n" if system else "",
        command=systemd.command(serve), user=_user(data, system), target="multi-user.target" if system else "default.target",
    )  # fmt: skip


def _user(data: Path, system: bool) -> str:
    """Lines for the user that the service runs as and the one folder that it may write."""
    writable = f"ReadWritePaths={systemd.quote(data)}\n"
    if not system:
        return writable
    # These take away capabilities, which a user's own systemd cannot: there the service would not start (218/CAPABILITIES).
    only_system = (
        "CapabilityBoundingSet=\nPrivateDevices=yes\nProtectClock=yes\nProtectKernelModules=yes\nProtectKernelLogs=yes\n"
        "ProtectHostname=yes\nProtectProc=invisible\nRemoveIPC=yes\n"
    )
    if data.exists() and data != SYSTEM_DATA:
        return f"User={systemd.owner(data)}\n{writable}{only_system}"
    if data == SYSTEM_DATA:
        return f"DynamicUser=yes\nStateDirectory={data.name}\nStateDirectoryMode=0700\n{only_system}"
    raise CoordinatorError(f"there is no folder {data}; make it, owned by whom the coordinator shall run as")


def install(data: Path, arguments: list[str], system: bool) -> systemd.Outcome:
    """Writes the unit and starts it; raises `CoordinatorError`."""
    systemd.check_rights(system, "comigs-coordinator service install --system")
    text = unit(data, arguments, system)
    if data == SYSTEM_DATA:
        systemd.check_readable()
    else:
        try:
            data.mkdir(mode=0o700, parents=True, exist_ok=True)  # ReadWritePaths needs it
        except OSError as error:
            raise CoordinatorError(f"{data} cannot be made ({error.strerror}); name another folder with --data") from error
    done = systemd.install({UNIT: text}, UNIT, system)
    return done if system else systemd.Outcome(done.files, done.left + systemd.linger())


def uninstall(system: bool) -> systemd.Outcome:
    """Stops it and deletes the unit; the data stay."""
    systemd.check_rights(system, "comigs-coordinator service uninstall --system")
    return systemd.uninstall([UNIT], UNIT, system)
