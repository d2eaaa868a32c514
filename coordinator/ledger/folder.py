"""The coordinator's folder, for its owner alone, and the lock that makes one process its only writer.

config.toml   coordinator.db   payloads/   uploads/   keys/ (TLS key and certificate, signing key)   lock   admin.sock
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from coordinator.ledger import config
from coordinator.ledger.database import Database
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.payloads import Payloads, sync_folder
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError


class Folder:
    """Paths and keys of one coordinator; held by one process at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = config.read(root / "config.toml")
        self.certificate, self.tls_key = root / "keys" / "tls.pem", root / "keys" / "tls.key"
        self._signing = root / "keys" / "signing.key"
        if not self._signing.exists():
            self._make_keys()
        self.signing_key = keys.key_from_pem(self._signing.read_bytes(), self._signing)

    @property
    def pin(self) -> bytes:
        """SHA-256 of the TLS certificate."""
        return keys.fingerprint(self.certificate.read_bytes())

    def _make_keys(self) -> None:
        self._signing.parent.mkdir(mode=0o700, exist_ok=True)
        key, certificate = keys.new_certificate()
        sync_folder(self.root)
        # The signing key is written last: if it exists, so do the others.
        signing = keys.key_to_pem(keys.new_key())
        for path, data in ((self.tls_key, key), (self.certificate, certificate), (self._signing, signing)):
            temporary = path.with_suffix(".new")
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)

    @classmethod
    @contextlib.contextmanager
    def open(cls, root: Path) -> Iterator[Folder]:
        """The folder, made if missing, under its lock; raises `CoordinatorError` if another process holds it."""
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise CoordinatorError(f"{root} cannot be used ({error.strerror}); name another folder with --data") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                advice = "stop it, or name another folder with --data"
                raise CoordinatorError(f"another coordinator runs in {root}; {advice}") from None
            yield cls(root)
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def fleet(self, clock: Callable[[], float], settings: config.Config | None = None) -> Iterator[Fleet]:
        """The fleet of this folder; contacts that are only in memory are written at the end."""
        database = Database(self.root / "coordinator.db")
        try:
            fleet = Fleet(database, Payloads(self.root), self.signing_key, settings or self.config, clock)
            yield fleet
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk; it is only the last contacts
                fleet.members.flush(now_at_all_costs=True)
        finally:
            database.close()
