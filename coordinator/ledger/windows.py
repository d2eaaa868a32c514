"""The private windows of a fleet that are on their way, in a file of their own.

A window may be given up at any time, so it is no part of the ledger: no backup has it, and a file that is damaged is made anew.
What a window brings, its sum, is an entry of the ledger. Whatever was kept of a window is deleted when it ends, but for how it
ended, with the number of its devices.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.ledger.sqlite_file import SQLiteFile
from coordinator.ledger.window import KINDS, OpenWindow, Part
from coordinator.protocol import keys
from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import WindowNote, decode, encode
from coordinator.protocol.private.cohort import Distrust, sign_terms
from coordinator.protocol.private.messages import LEAST, Masked, SignedTerms, Stage, Terms
from coordinator.protocol.rounds import Rules

SCHEMA = """
CREATE TABLE IF NOT EXISTS windows (
    id TEXT PRIMARY KEY, terms TEXT NOT NULL, signature TEXT NOT NULL, stage TEXT NOT NULL, since REAL, head TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS parts (
    window TEXT NOT NULL, device TEXT NOT NULL, stage TEXT NOT NULL, part BLOB NOT NULL, PRIMARY KEY (window, device, stage)
) STRICT;
CREATE TABLE IF NOT EXISTS ended (
    ended REAL NOT NULL, stage TEXT NOT NULL, devices INTEGER NOT NULL, given INTEGER NOT NULL, round INTEGER, reason TEXT
) STRICT;
"""
KEPT = 100  # windows that ended
log = logging.getLogger("comigs-coordinator")


class Windows:
    """Those of one fleet."""

    def __init__(self, path: Path, signing_key: Ed25519PrivateKey, fleet: str, clock: Callable[[], float]) -> None:
        self._signing_key, self._fleet, self._clock = signing_key, fleet, clock
        self._db = _open(path)
        # Times that lie in the future were written by a clock that was ahead: they become now.
        self._db.run("UPDATE windows SET since = ?1 WHERE since > ?1", clock())
        self.open = {each.terms.window: each for each in self._read()}
        self.outcomes: Counter[str] = Counter(summed=0, given_up=0)  # since this process began

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def _read(self) -> Iterator[OpenWindow]:
        public = keys.public_text(self._signing_key)
        for row in self._db.rows("SELECT * FROM windows ORDER BY rowid"):
            signed = SignedTerms(terms=row["terms"], signature=row["signature"])
            terms = decode(keys.to_bytes(row["terms"]), Terms)
            window = OpenWindow(
                terms=terms, signed=signed, signing_key=public, stage=row["stage"], since=row["since"], head=row["head"]
            )
            for part in self._db.rows("SELECT * FROM parts WHERE window = ? ORDER BY rowid", row["id"]):
                kind: type[Part] = KINDS[part["stage"]]
                window.parts[part["stage"]][part["device"]] = decode(part["part"], kind)
            yield window

    @property
    def masked(self) -> set[str]:
        """SHA-256 of the masked updates that are still needed."""
        parts = (part for window in self.open.values() for part in window.parts["masked"].values())
        return {part.sha256 for part in parts if isinstance(part, Masked)}

    # What devices give --------------------------------------------------------------------------------------------

    def notes(self, device: str) -> list[WindowNote]:
        """What is on its way, for one device."""
        return [WindowNote(window=name, wants=each.stage if each.wants(device) else "") for name, each in self.open.items()]

    @property
    def waits_for(self) -> int:
        """More devices without which no window begins, where none is on its way."""
        waiting = [each for each in self.open.values() if each.stage == "keys"]
        return max(0, waiting[0].terms.least - len(waiting[0].parts["keys"])) if len(waiting) == len(self.open) == 1 else 0

    def find(self, window: str) -> OpenWindow:
        """A window; raises `Refused` where it is over."""
        if (found := self.open.get(window)) is None:
            raise Refused(404, "no_window", "this private window is over, or was given up; ask where the fleet stands")
        return found

    def check(self, window: str, stage: Stage, device: str, part: Part) -> bool:
        """Whether the part is new; raises `Refused` where it is not wanted or cannot be used."""
        found = self.find(window)
        if found.parts[stage].get(device) == part:
            return False  # sent again: the answer was lost
        if found.stage != stage:
            raise Refused(409, "not_wanted", f"the window is at its {found.stage} and not at its {stage}")
        found.check(device, part)
        return True

    def put(self, window: str, device: str, part: Part) -> None:
        """Keeps what was checked, before the device hears so."""
        found, now = self.find(window), self._clock()
        with self._db.transaction():
            self._db.run("INSERT INTO parts VALUES (?, ?, ?, ?)", window, device, found.stage, encode(part))
            self._db.run("UPDATE windows SET since = coalesce(since, ?) WHERE id = ?", now, window)
        found.put(device, part, now)

    # What time brings ---------------------------------------------------------------------------------------------

    def begin(self, least: int, bound: float, numbers: int) -> None:
        """Asks for the keys of the next window, unless there is one that asks already."""
        if any(each.stage in ("keys", "shares") for each in self.open.values()):
            return
        terms = Terms(fleet=self._fleet, window=secrets.token_hex(16), least=max(LEAST, least), bound=bound, numbers=numbers)
        signed = sign_terms(self._signing_key, terms)
        row = terms.window, signed.terms, signed.signature
        self._db.run("INSERT INTO windows VALUES (?, ?, ?, 'keys', NULL, '')", *row)
        self.open[terms.window] = OpenWindow(terms=terms, signed=signed, signing_key=keys.public_text(self._signing_key))

    def move(self, seconds: float) -> None:
        """The clock was set by so much."""
        if not seconds:
            return
        self._db.run("UPDATE windows SET since = since + ?", seconds)
        for window in self.open.values():
            window.since = None if window.since is None else window.since + seconds

    def advance(self, rules: Rules, awaited: int, head: str, listed: Collection[str]) -> None:
        """Ends stages that are complete; gives up windows that cannot go on, and those whose masks are for another generalist.

        `head` is the hash of the newest manifest, `listed` are the devices that windows may have: the others mask with no other.
        """
        for window in list(self.open.values()):
            try:
                if window.stage == "masked" and window.head != head:
                    raise Distrust("another generalist was published meanwhile")
                if not (window.can_be_opened or set(window.parts["keys"]) <= set(listed)):
                    raise Distrust("a device of it is not in the roster of the fleet's owner")
                others = (each for each in self.open.values() if each is not window)
                is_free = all(each.stage in ("keys", "shares") for each in others)
                while (stage := window.advance(self._clock(), rules, awaited, is_free)) is not None:
                    self._enter(window, stage, head if stage == "masked" else window.head)
            except Distrust as error:
                log.warning("a private window was given up: %s; its devices bring what they have in the next", error)
                self.end(window.terms.window, reason=str(error))

    def _enter(self, window: OpenWindow, stage: Stage, head: str) -> None:
        now = None if stage == "keys" else self._clock()
        self._db.run("UPDATE windows SET stage = ?, since = ?, head = ? WHERE id = ?", stage, now, head, window.terms.window)
        window.stage, window.since, window.head = stage, now, head

    def end(self, window: str, *, round: int | None = None, reason: str | None = None) -> None:
        """Deletes what was kept of a window; notes the `round` that its sum closed, or the `reason` for giving it up."""
        ended = self.open.pop(window)
        counts = len(ended.parts["keys"]), len(ended.parts[ended.stage])
        with self._db.transaction():
            self._db.run("DELETE FROM parts WHERE window = ?", window)
            self._db.run("DELETE FROM windows WHERE id = ?", window)
            self._db.run("INSERT INTO ended VALUES (?, ?, ?, ?, ?, ?)", self._clock(), ended.stage, *counts, round, reason)
            self._db.run("DELETE FROM ended WHERE rowid <= (SELECT max(rowid) FROM ended) - ?", KEPT)
        self.outcomes["summed" if reason is None else "given_up"] += 1

    def ended(self, last: int = KEPT) -> list[dict[str, Any]]:
        """How the last windows ended, the newest first: when, at which stage, of how many devices, how many of them had given
        what the stage is for; and the round that the sum closed, or why the window was given up.
        """
        return self._db.rows("SELECT * FROM ended ORDER BY rowid DESC LIMIT ?", last)


class _File(SQLiteFile):
    """What is deleted of it is overwritten."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._use_alone("TRUNCATE")
            self.run("PRAGMA secure_delete=ON")
            for statement in filter(str.strip, SCHEMA.split(";")):
                self.run(statement)
            if (flaw := self.value("PRAGMA quick_check(1)")) != "ok":
                raise sqlite3.DatabaseError(str(flaw))
        except BaseException:
            self.close()
            raise


def _open(path: Path) -> _File:
    """The file; one that is damaged is made anew."""
    try:
        return _File(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        log.warning("%s is damaged (%s): the private windows on their way are given up, and nothing is lost", path, error)
        path.unlink()
        return _File(path)
