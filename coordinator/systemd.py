"""Unit files of systemd: where they are, what is quoted in them, and calls of systemctl. Standard library only.

Where systemd cannot be reached (a container, another init) nothing fails: the commands to type are in the answer.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from coordinator.protocol.errors import CoordinatorError

SECONDS = 30.0  # that systemctl may take
# What every unit gives up, the user's own too.
SANDBOX = """\
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectControlGroups=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""


class Outcome(NamedTuple):
    """What was done: the files, and the commands that a person must type because they did not work here."""

    files: list[Path]
    left: list[str]


def folder(system: bool) -> Path:
    """Where units go: the system's, or this user's."""
    if system:
        return Path("/etc/systemd/system")
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "systemd" / "user"


def check_rights(system: bool, command: str) -> None:
    """Raises `CoordinatorError` if a unit for the whole system is to be changed by another user than root."""
    if system and os.geteuid() != 0:
        raise CoordinatorError(f"a unit for the whole system is root's; leave out --system, or type: sudo {command}")


def install(units: Mapping[str, str], enabled: str, system: bool) -> Outcome:
    """Writes the units (name -> text), enables and starts one of them; raises `CoordinatorError`."""
    place = folder(system)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in units.items():
            temporary = place / f".{name}.new"
            temporary.write_text(text)
            temporary.chmod(0o644)
            temporary.replace(place / name)
    except OSError as error:
        raise CoordinatorError(f"{error.filename} cannot be written ({error.strerror}); see who owns {place}") from error
    # restart: a unit that runs already takes the new text
    wanted = [["daemon-reload"], ["enable", enabled], ["restart", enabled]]
    return Outcome([place / name for name in units], _run_systemctl(wanted, system))


def uninstall(names: list[str], enabled: str, system: bool) -> Outcome:
    """Stops and disables a unit and deletes the files; raises `CoordinatorError` if nothing is installed."""
    files = [folder(system) / name for name in names]
    if not any(file.exists() for file in files):
        raise CoordinatorError(f"there is no {enabled} in {folder(system)}; nothing was installed there")
    left = _run_systemctl([["disable", "--now", enabled]], system)
    try:
        for file in files:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise CoordinatorError(f"{error.filename} cannot be deleted ({error.strerror})") from error
    return Outcome(files, left + _run_systemctl([["daemon-reload"]], system))


def is_active(name: str, system: bool) -> str:
    """systemd's word for a unit: active, inactive, failed ...; unknown where systemd cannot be reached."""
    words = [*_systemctl(system), "is-active", name]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS).stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def linger() -> list[str]:
    """Lets this user's units run without the user being logged in; returns the command if that did not work."""
    user = os.environ.get("USER") or str(os.getuid())
    try:
        subprocess.run(["loginctl", "enable-linger", user], check=True, capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return [f"sudo loginctl enable-linger {user}"]
    return []


def lingers() -> bool:
    """Whether this user's units outlive the login: their manager answers, and lingering is on."""
    user = os.environ.get("USER") or str(os.getuid())
    words = ["loginctl", "show-user", user, "--property=Linger", "--value"]
    try:
        subprocess.run(["systemctl", "--user", "is-active", "default.target"], check=True, capture_output=True, timeout=SECONDS)
        return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS).stdout.strip() == "yes"
    except (OSError, subprocess.SubprocessError):
        return False


def quote(text: str | Path) -> str:
    """One word of a command line or a path in a unit file (systemd.service, systemd.syntax)."""
    text = str(text)
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise CoordinatorError(f"{text!r} cannot be said in a unit file; choose a name without control characters")
    for mark, meant in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        text = text.replace(mark, meant)
    return text if re.fullmatch(r"[A-Za-z0-9_@/.,:=+%-]+", text) else f'"{text}"'


def command(words: list[str]) -> str:
    """A command line for ExecStart=, in which systemd would also put variables in place of $."""
    return " ".join(quote(word).replace("$", "$$") for word in words)


def program(name: str, module: str) -> list[str]:
    """How this environment's program is started: its script, or Python with the module if there is no script."""
    script = Path(sys.executable).parent / name
    return [str(script)] if script.exists() else [sys.executable, "-m", module]


def owner(folder: Path) -> int:
    """The user id as which a system service works in this folder; raises `CoordinatorError` if that is root's."""
    user = folder.stat().st_uid
    if user == 0:
        raise CoordinatorError(
            f"{folder} is root's, and a service that the network reaches does not run as root; give it to the user "
            f"it shall run as: sudo chown -R USER {folder}"
        )
    return user


def check_readable() -> None:
    """Raises `CoordinatorError` if a service without a user account (DynamicUser) could not read this program."""
    for path in (Path(sys.executable), Path(sys.executable).resolve(), Path(__file__).resolve()):
        closed = next((parent for parent in path.parents if parent.stat().st_mode & 0o005 != 0o005), None)
        if closed is not None:
            raise CoordinatorError(
                f"a system service could not read this program: {closed} is closed to others; install comigs-edge in "
                "/opt, leave out --system, or name a folder with --data, whose owner it will run as"
            )


def _systemctl(system: bool) -> list[str]:
    return ["systemctl"] if system else ["systemctl", "--user"]


def _run_systemctl(commands: list[list[str]], system: bool) -> list[str]:
    """Runs the commands; returns those that are left, from the first one that failed."""
    start = _systemctl(system)
    for index, words in enumerate(commands):
        try:
            subprocess.run([*start, *words], check=True, capture_output=True, timeout=SECONDS)
        except (OSError, subprocess.SubprocessError):
            return [" ".join([*start, *rest]) for rest in commands[index:]]
    return []
