"""The coordinator's folder, for its owner alone, and the lock that makes one process its only writer.

config.toml   coordinator.db   payloads/   uploads/   keys/ (TLS key and certificate, signing key)   lock   admin.sock
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from coordinator.ledger import config, rows, salvage
from coordinator.ledger.database import DamagedLedger, Database
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.payloads import Payloads, sync_folder
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError


class Folder:
    """Paths and keys of one coordinator; held by one process at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.certificate, self.tls_key, self._signing = _key_files(root)
        self.ledger = root / "coordinator.db"
        self._check_owner()
        check_whole(root)
        self._config = config.read(root / "config.toml", makes=not self.ledger.exists())
        if not self._signing.exists():
            self._make_keys()
        self.signing_key = keys.key_from_pem(_read(self._signing), self._signing)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.tls_key)
        except (OSError, ValueError) as error:
            raise CoordinatorError(f"{self.certificate} and tls.key do not fit ({error}); restore keys/ from a backup") from error

    @property
    def pin(self) -> bytes:
        """SHA-256 of the TLS certificate."""
        return keys.fingerprint(self.certificate.read_bytes())

    def _check_owner(self) -> None:
        """Raises `CoordinatorError` where another user may write: who can rename keys/ is the coordinator."""
        for path in (self.root, self._signing.parent, self.root / "config.toml", self.ledger):
            if path.exists() and path.stat().st_mode & 0o022:
                raise CoordinatorError(
                    f"other users may write {path}; type chmod go-w {path}, or name another folder with --data"
                )

    def _make_keys(self) -> None:
        """All keys come into their place together."""
        temporary = self.root / "keys.new"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o700)
        key, certificate = keys.new_certificate()
        signing = keys.key_to_pem(keys.new_key())
        for path, data in ((self.tls_key, key), (self.certificate, certificate), (self._signing, signing)):
            with open(os.open(temporary / path.name, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(temporary)
        temporary.replace(self._signing.parent)
        sync_folder(self.root)

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
    def fleet(self, clock: Callable[[], float], values: dict[str, Any] | None = None) -> Iterator[Fleet]:
        """The fleet of this folder; contacts that are only in memory are written at the end.

        `values` are settings in place of config.toml's. Where that is gone, those of the last start count. Raises `DamagedLedger`
        where a repair helps, and another `CoordinatorError` where only a backup does.
        """
        try:
            with self._fleet(clock, values or {}) as fleet:
                yield fleet
        except DamagedLedger:
            salvage.rebuild(self.ledger, Payloads(self.root), self.signing_key, time.time(), replace=False, has_gaps=True)
            raise

    @contextlib.contextmanager
    def _fleet(self, clock: Callable[[], float], values: dict[str, Any]) -> Iterator[Fleet]:
        database = Database(self.ledger)
        try:
            if found := rows.damaged(database, keys.public_text(self.signing_key), ("facts", "devices", "rounds")):
                more = f" and {len(found) - 1} more" if len(found) > 1 else ""
                raise DamagedLedger(f"{next(iter(found.values()))}{more}")
            settings = (self._config or config.last(database) or config.Config()).with_values(values)
            fleet = Fleet(database, Payloads(self.root), self.signing_key, settings, clock)
            fleet.has_settings_file = self._config is not None
            yield fleet
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk; it is only the last contacts
                fleet.members.flush(now_at_all_costs=True)
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # a full disk, or a bug
                raise
            raise DamagedLedger(f"{self.ledger} is damaged ({error})") from error
        finally:
            database.close()


def is_empty(root: Path) -> bool:
    """Whether no coordinator has begun here."""
    return not any((root / name).exists() for name in ("keys", "coordinator.db", "payloads"))


def check_whole(root: Path) -> None:
    """Raises `CoordinatorError` where keys or ledger are gone: new ones would shut every device out."""
    ledger, payloads, parts = root / "coordinator.db", root / "payloads", _key_files(root)
    salvage.finish(ledger)
    gone = [path for path in parts if not path.exists()]
    if gone and (len(gone) < len(parts) or ledger.exists()):
        raise CoordinatorError(f"{gone[0]} is gone; restore keys/ from a backup: new keys would shut every device out")
    if not (ledger.exists() and ledger.stat().st_size) and payloads.exists() and any(payloads.iterdir()):
        raise CoordinatorError(f"{ledger} is gone or empty while {payloads} is not; restore it from a backup")


def _key_files(root: Path) -> tuple[Path, Path, Path]:
    return root / "keys" / "tls.pem", root / "keys" / "tls.key", root / "keys" / "signing.key"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CoordinatorError(f"{path} cannot be read ({error.strerror}); restore keys/ from a backup") from error
