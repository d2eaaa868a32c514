"""`comigs-edge service`: reads and trains at night by itself, on mains power, while the device is idle; a timer of systemd."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from comigs_edge.commands.console import next_command, out
from comigs_edge.commands.settings import settings_of
from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes

app = typer.Typer(no_args_is_help=True, help="Train every night by itself, on mains power; a timer of systemd.")

SERVICE, TIMER = "comigs-edge-train.service", "comigs-edge-train.timer"
System = Annotated[bool, typer.Option("--system", help="Of the whole machine, as root; default: your own.")]

SERVICE_TEXT = """\
[Unit]
Description=comigs-edge: trains this device's model
ConditionACPower=true

[Service]
Type=exec
Environment={environment}
ExecStart={command}
{user}\
# Stopped means: ends after the present step and saves everything, which may take long on a small board.
TimeoutStopSec=30min
SuccessExitStatus=130 143
Nice=19
CPUSchedulingPolicy=idle
IOSchedulingClass=idle
UMask=0077
LimitNOFILE=65536
{sandbox}\
ReadWritePaths={home}
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
"""

# What only the system's systemd can take away. No device is: GPUs have others on every board. ProtectClock= would hide them, too.
SYSTEM_TEXT = """\
User={user}
CapabilityBoundingSet=
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectProc=invisible
RemoveIPC=yes
"""

TIMER_TEXT = """\
[Unit]
Description=comigs-edge: trains at night

[Timer]
OnCalendar=*-*-* {at}:00
# A household's devices do not all begin at once; a device that was off begins when it is on again.
RandomizedDelaySec=45min
Persistent=true

[Install]
WantedBy=timers.target
"""


@app.command()
def install(
    at: Annotated[str, typer.Option(metavar="HH:MM", help="When it may begin, by this device's clock.")] = "01:00",
    system: System = False,
    show: Annotated[bool, typer.Option("--print", help="Print the units, and do nothing.")] = False,
) -> None:
    """Write the timer and its service, and start the timer."""
    if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", at):
        raise typer.BadParameter(f"{at} is no time of day, as in 01:00", param_hint="--at")
    units = _units(at, system)
    if show:
        sys.stdout.write("\n".join(f"# {name}\n{text}" for name, text in units.items()))
        return
    files, left = _with_systemd("install", units, system)
    out.print("\n".join(f"unit  {file}" for file in files), soft_wrap=True)
    _end(left, "systemctl list-timers" if system else "systemctl --user list-timers")


@app.command("run")
def run_now() -> None:
    """What the timer runs: read what was added again, train on, exchange with the fleet; `status` tells what was done."""
    from comigs_edge.commands.night import run_night

    home = homes.locate()
    settings_of(home)  # raises where there is no home
    run_night(home)


@app.command()
def uninstall(system: System = False) -> None:
    """Stop the timer and delete both units; what was trained stays."""
    files, left = _with_systemd("uninstall", {SERVICE: "", TIMER: ""}, system)
    out.print("\n".join(f"deleted  {file}" for file in files), soft_wrap=True)
    _end(left, "comigs-edge status")


def find_outdated() -> str | None:
    """The command that an installed service runs, where this version installs another one; None where it is as it should be."""
    from coordinator import systemd

    for system in (False, True):
        with suppress(OSError):
            found = re.search(r"^ExecStart=(.*)$", (systemd.folder(system) / SERVICE).read_text(), re.MULTILINE)
            if found is not None and found[1] != _command():
                return found[1]
    return None


def _command() -> str:
    from coordinator import systemd

    return systemd.command([*systemd.program("comigs-edge", "comigs_edge"), "service", "run"])


def _units(at: str, system: bool) -> dict[str, str]:
    from coordinator import systemd

    home = homes.locate()
    if not home.exists:
        raise ComigsError(f"there is no home at {home.root}; make one with: comigs-edge init, or name it: COMIGS_EDGE_HOME")
    # The home is one person's: a system's unit runs as its owner, too.
    user = SYSTEM_TEXT.format(user=home.root.stat().st_uid) if system else ""
    service = SERVICE_TEXT.format(
        sandbox=systemd.SANDBOX,
        environment=systemd.quote(f"COMIGS_EDGE_HOME={home.root}"), home=systemd.quote(home.root), user=user,
        command=_command(),
    )  # fmt: skip
    return {SERVICE: service, TIMER: TIMER_TEXT.format(at=at)}


def _with_systemd(action: str, units: dict[str, str], system: bool) -> tuple[list[Path], list[str]]:
    """Files, and the commands that a person must type; the timer is what is enabled."""
    from coordinator import systemd

    systemd.check_rights(system, f"comigs-edge service {action} --system")
    if action == "uninstall":
        return systemd.uninstall(list(units), TIMER, system)
    files, left = systemd.install(units, TIMER, system)
    return files, left if system else left + systemd.linger()


def _end(left: list[str], then: str) -> None:
    if left:
        out.print("\nsystemd did not do these; type them where it runs:", soft_wrap=True)
        out.print("\n".join(f"  {command}" for command in left), soft_wrap=True)
    next_command(then)
