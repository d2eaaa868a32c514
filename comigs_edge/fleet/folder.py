"""What a device keeps of the fleet it belongs to, in `fleet/` of its home; without torch.

    membership.json          the coordinator's address and pin, this device's id
    heard.json               what the coordinator said last, and why an exchange failed
    windows/, answered       what this device holds of private windows: see `held.py`; roster.json: see `roster.py`
    and its books            see `book_files.py`; ../owners.json: see `owners.py`

A file is replaced as a whole, a damaged one set aside as *.damaged, a fleet that was left in `left/` of the home.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.alone import Alone
from comigs_edge.fleet.book_files import BookFiles
from comigs_edge.fleet.heard import Heard, read_heard, write_heard
from comigs_edge.fleet.held import HeldWindows
from comigs_edge.fleet.membership import Membership, find_membership, said
from comigs_edge.fleet.owners import ROSTER, Owners
from comigs_edge.home.folder import Home
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import State


class FleetFolder(BookFiles):
    """The files: who this device is in its fleet, and its books."""

    def __init__(self, home: Home) -> None:
        super().__init__(home.fleet)
        self.alone, self.key_file = Alone(home.root / "alone"), home.root / "device.key"
        self._left, self._membership = home.root / "left", self.root / "membership.json"
        self._heard, self.windows = self.root / "heard.json", self.root / "windows"
        self._told: set[str] = set()
        self.owners = Owners(home.root / "owners.json", self.notes)

    # Membership ---------------------------------------------------------------------------------------------------

    @property
    def is_member(self) -> bool:
        """Whether this device has joined a fleet; its books say so, even where the membership itself is gone."""
        return self.root.exists()

    def membership(self) -> Membership:
        """The membership, from the standing's facts where it is damaged or gone; raises `ComigsError` where there is none."""
        if not self.is_member:
            raise ComigsError("this device belongs to no fleet; get a link from its coordinator and run: comigs-edge join LINK")
        member, note = find_membership(self._membership, self._facts)
        self.notes += [note] if note else []
        owned = self.owners.find(member.fleet)
        return member if owned is None else replace(member, roster_key=owned.keys.get(member.pin, member.roster_key))

    def save_membership(self, membership: Membership) -> None:
        """Writes it, if it changed."""
        self.owners.say(membership.fleet, membership.pin, membership.roster_key)
        data = json.dumps(membership.facts(), indent=1).encode()
        self._clear(self._membership)
        if not self._membership.exists() or self._membership.read_bytes() != data:
            files.write_atomic(self._membership, data)

    @property
    def was_member(self) -> bool:
        """Whether this device has left a fleet, which it may join again."""
        return self._left.exists()

    def leave(self) -> None:
        """Sets the folder aside, for the day when this device joins the same fleet again."""
        aside = self._aside(_fact(self.root, "fleet") or "unknown")
        files.make_folder(self._left)
        shutil.rmtree(aside, ignore_errors=True)
        HeldWindows(self.windows).leave_all()
        self.root.replace(aside)
        files.sync_folder(self._left)

    def all_books(self) -> list[BookFiles]:
        """Those of the present fleet, and of each that was left."""
        return [*([self] if self.is_member else []), *map(BookFiles, sorted(self._left.glob("*")))]

    def take_up(self, fleet: str, signing_key: str) -> str | None:
        """Puts what there was of this fleet in its place again; returns the word of that membership, None without one.

        What is there of another fleet is set aside.
        """
        if self.root.exists() and all(path.name.startswith(".") for path in self.root.iterdir()):  # a joining was killed
            shutil.rmtree(self.root)
        if self.root.exists() and _fact(self.root, "fleet") != fleet:
            self.leave()
        if not self.root.exists() and self._aside(fleet).exists():
            self._aside(fleet).replace(self.root)
        if self.root.exists() and _fact(self.root, "signing_key") != signing_key:
            self.leave()
        return _fact(self.root, "joined")

    def former(self, fact: Literal["device", "roster_key"], pin: str) -> str | None:
        """Of the last membership in the fleet of the coordinator with this certificate; None: it was never there."""
        return next((_fact(root, fact) for root in (self.root, *sorted(self._left.glob("*"))) if _fact(root, "pin") == pin), None)

    def roster_key(self, pin: str, fleet: str) -> str:
        """The owner's key that holds at a coordinator until another is said; empty: none. Raises `ComigsError` where it is lost.

        That of the present membership holds whatever the coordinator is; else that of the coordinator with this certificate, of
        this fleet, or that of the fleet that was left last.
        """
        (known, flaw), present, here = self.owners.read(), _fact(self.root, "fleet"), _fact(self.root, "pin") or ""
        if present is not None and (present not in known or here not in known[present].keys):  # as earlier versions wrote it
            return _fact(self.root, "roster_key") or ""
        last = [known[name] for name in reversed(known)]
        found = [known[present].keys[here]] if present is not None else [each.last for each in last[:1] if self.is_member]
        found += [each.keys[pin] for each in last if pin in each.keys]
        found += [known[fleet].last] if fleet in known else []
        former = self.former("roster_key", pin)
        if not found and former is None and (flaw or (self.root / ROSTER).exists()):
            raise ComigsError(
                f"{flaw or f'{self.root} is damaged'}, so nobody knows any more who signs this fleet's roster; ask its owner for "
                "the key, and join with: comigs-edge join LINK --roster-key KEY (or none, if there is no roster)"
            )
        return found[0] if found else former or (last[0].last if last else "")

    def forget_heard(self) -> None:
        """What the coordinator said to another key."""
        self._heard.unlink(missing_ok=True)

    def _aside(self, fleet: str) -> Path:
        return self._left / hashlib.sha256(fleet.encode()).hexdigest()[:16]

    def key(self, *, makes: bool = False) -> Ed25519PrivateKey:
        """This device's key. Only joining `makes` a missing one: another key is another device. Raises `ComigsError`."""
        if not self.key_file.exists():
            if not makes:
                raise ComigsError(f"{self.key_file} is gone; restore it from a backup, or join again: comigs-edge join LINK")
            files.write_atomic(self.key_file, keys.key_to_pem(keys.new_key()))
        try:
            return keys.key_from_pem(self.key_file.read_bytes(), self.key_file)
        except (CoordinatorError, OSError) as error:
            unread = f"{self.key_file} cannot be read ({getattr(error, 'strerror', '')}); give it back to its owner"
            why = unread if isinstance(error, OSError) else str(error)
            raise ComigsError(f"{why}, or move it away and join again: comigs-edge join LINK") from error

    # What was heard -----------------------------------------------------------------------------------------------

    @property
    def heard(self) -> Heard:
        """What the coordinator said last."""
        return read_heard(self._heard)

    def hear(self, state: State, own: Collection[str], kept_out: str | None = None) -> Heard:
        """Notes what it says now; `own`: ids of updates that this home has sent; `kept_out`: as `News` says."""
        heard = (before := self.heard).hear(state, own, kept_out)
        if kept_out is not None and kept_out not in self._told:  # once in a training
            self._told.add(kept_out)
            self.notes.append(kept_out)
        write_heard(self._heard, heard)
        if heard.strangers > before.strangers:
            self.notes.append(heard.notice(self.key_file))
        return heard

    def note_trouble(self, reason: str) -> None:
        """Why an exchange failed; until the next one that does not."""
        write_heard(self._heard, replace(self.heard, trouble=reason))


def _fact(root: Path, name: str) -> str | None:
    """Of the membership in this folder; its standing knows some of them too, where that is damaged."""
    return next(iter(said(root, name)), None)
