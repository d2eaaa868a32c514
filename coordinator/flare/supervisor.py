"""Submits the fleet's job again and again: a job ends after some rounds, and one whose server was killed never does.

Whether somebody counts is seen at the lock of the coordinator's folder, which a dead process does not hold: a job that FLARE
calls running while the lock is free is a zombie.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordinator.flare.export import ADMIN, JOB
from coordinator.protocol.errors import CoordinatorError

ZOMBIE = 30.0  # seconds that a job may run without holding the lock: it starts, or it ends
TRY = 10.0  # seconds for FLARE's server to answer
PAUSE, MAX_PAUSE = 5.0, 600.0  # seconds between two jobs, twice as long after each that ended before it counted


def is_counting(data: Path) -> bool:
    """Whether a coordinator, of whichever kind, holds the folder."""
    try:
        lock = os.open(data / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


class Supervisor:
    """Of one project; `say` takes one sentence at a time."""

    def __init__(
        self, admin_kit: Path, job: Path, data: Path, say: Callable[[str], None], connect: Callable[[Path], Any] | None = None
    ) -> None:
        self._kit, self._job, self._data, self._say = admin_kit, job, data, say
        self._connect = connect or _connect
        self._session: Any = None
        self._counted, self._dead, self._is_away = time.monotonic(), set[str](), False
        self._pause, self._next = PAUSE, 0.0

    def look(self) -> None:
        """Submits the job if none runs; called every few seconds."""
        if is_counting(self._data):
            self._counted, self._pause, self._next = time.monotonic(), PAUSE, 0.0
            return
        try:
            self._look()
            self._is_away = False
        except CoordinatorError:
            raise
        except Exception as error:  # FLARE's client raises what it likes while its server starts
            self.close()
            if not self._is_away:
                self._say(f"FLARE's server does not answer ({type(error).__name__}: {error}); tried again until it does")
            self._is_away = True

    def wait_for_the_end(self) -> None:
        """Until the folder is free: a job's process sees only after a while that its server has ended."""
        end = time.monotonic() + ZOMBIE
        while is_counting(self._data) and time.monotonic() < end:
            time.sleep(0.5)

    def close(self) -> None:
        """Ends the session with FLARE's server."""
        with contextlib.suppress(Exception):
            self._session.close()
        self._session = None

    def _look(self) -> None:
        self._session = self._session or self._connect(self._kit)
        jobs = {job["job_id"]: job["status"] for job in self._session.list_jobs(name_prefix=JOB)}
        alive = {name for name, status in jobs.items() if not status.startswith("FINISHED")} - self._dead
        if alive and time.monotonic() - self._counted < ZOMBIE:
            return
        for name in sorted(alive):
            if jobs[name] != "RUNNING":  # it waits for a site
                return
            self._say(f"job {name} has no server any more and is given up")
            with contextlib.suppress(Exception):
                self._session.abort_job(name)
            self._dead.add(name)
        if time.monotonic() >= self._next:
            self._counted = time.monotonic()
            self._next, self._pause = self._counted + self._pause, min(MAX_PAUSE, 2 * self._pause)
            self._say(f"submitted job {self._session.submit_job(str(self._job))}")


def _connect(kit: Path) -> Any:
    try:
        from nvflare.fuel.flare_api.flare_api import new_secure_session
    except ImportError as error:
        raise CoordinatorError("NVIDIA FLARE is not installed here; type: pip install 'comigs-edge[flare]'") from error
    return new_secure_session(ADMIN, str(kit), timeout=TRY)
