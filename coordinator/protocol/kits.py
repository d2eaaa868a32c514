"""Startup kits of NVIDIA FLARE, the same on server and site: whose they are, when their certificates end, how they are run."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509

from coordinator.protocol.errors import CoordinatorError

SPOOL = "COMIGS_EDGE_FLARE"  # names the folder of a site's tasks and answers, for the processes that FLARE starts
WARNED = timedelta(days=30)  # before the end of a certificate
PAUSE = 10.0  # seconds before what has ended is started again
STOP = 10.0  # seconds to end in
PR_SET_PDEATHSIG = 1  # sys/prctl.h


def find(folder: Path) -> Path:
    """The kit in a folder; raises `CoordinatorError`."""
    if not (folder / "startup" / "rootCA.pem").exists():
        raise CoordinatorError(f"{folder} is no startup kit of NVIDIA FLARE; unpack the one that its owner gave you, and name it")
    return folder


def name(kit: Path) -> str:
    """Whose kit it is: the common name of its certificate."""
    own = next(path for path in sorted((kit / "startup").glob("*.crt")))
    return str(_read(own).subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def end(kit: Path) -> datetime:
    """When the first of its certificates ends."""
    startup = kit / "startup"
    return min(_read(path).not_valid_after_utc for path in (startup / "rootCA.pem", *startup.glob("*.crt")))


def say_end(kit: Path, now: datetime | None = None) -> tuple[str, bool]:
    """A sentence on when the certificates end, and whether that is soon."""
    last, now = end(kit), now or datetime.now(timezone.utc)
    day, left = last.date().isoformat(), last - now
    if left <= timedelta(0):
        return f"the certificates of {kit} ended on {day}: nobody connects any more; its owner makes new kits", True
    then = "; ask for a new kit before that, nothing is lost meanwhile" if left < WARNED else ""
    return f"the certificates of {kit} end on {day}, in {left.days} days{then}", left < WARNED


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CoordinatorError(f"{path} cannot be read ({error}); unpack the startup kit once more") from error


def _die_with_parent() -> None:
    """A killed command leaves no client behind that goes on under the site's name."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """FLARE's process of a kit, which is started again when it ends; what it prints since this one began goes to `log`."""

    def __init__(self, kit: Path, log: Path, environment: dict[str, str] | None = None) -> None:
        found = re.search(r"python3 (-u -m nvflare\S+ .*)", (kit / "startup" / "sub_start.sh").read_text())
        if found is None:
            raise CoordinatorError(
                f"{kit}/startup/sub_start.sh starts nothing that is known; is it of NVIDIA FLARE 2.9 or later?"
            )
        self._words = [str(kit.absolute()) if word == '"$WORKSPACE"' else word for word in found[1].split()]
        self._kit, self._log, self._environment = kit, log, os.environ | (environment or {})
        log.unlink(missing_ok=True)
        self._begun, self._process = -PAUSE, self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._begun = time.monotonic()
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *self._words], cwd=self._kit, env=self._environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        return self._process.pid

    def keep(self) -> None:
        """Starts it again if it has ended."""
        if self._process.poll() is not None and time.monotonic() - self._begun >= PAUSE:
            self._process = self._start()

    def stop(self) -> None:
        """Ends it, and what it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(STOP)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
