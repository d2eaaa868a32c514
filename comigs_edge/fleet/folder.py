"""What a device keeps of the fleet it belongs to, in `fleet/` of its home; without torch.

    membership.json          the coordinator's address and pin, this device's id
    standing.safetensors     this device's generalist as far as the coordinator has received it, and what it started from;
                             standing.json: its facts and the membership once more, so that a damaged one
                             of the two loses neither the chain's head nor the fleet
    outbox.safetensors       an update that the coordinator has not acknowledged; outbox.tried: it may have it all the same;
                             outbox.rejected: it never counts as it is
    brought/ID               the last updates that counted: the fleet may go back behind them
    heard.json               what the coordinator said last, and why an exchange failed
    windows/, answered       what this device holds of private windows: see `held.py`; roster.json: see `roster.py`
    generalists/000012       the last three generalists that were accepted, and the best of them all

A file is replaced as a whole, a damaged one set aside as *.damaged, a fleet that was left in `left/` of the home.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from comigs_edge import files
from comigs_edge.arrays import select
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.alone import Alone
from comigs_edge.fleet.heard import Heard, read_heard, write_heard
from comigs_edge.fleet.held import HeldWindows
from comigs_edge.fleet.membership import Membership, find_membership
from comigs_edge.fleet.records import known, read_record, write_record
from comigs_edge.fleet.standing import Sealed, Standing, Written
from comigs_edge.home.folder import Home
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import State

KEPT_GENERALISTS, KEPT_UPDATES, KEPT_HEADS = 3, 32, 256
_ON_TOP = "on_top."


class FleetFolder:
    """The files."""

    def __init__(self, home: Home) -> None:
        self.root, self._left = home.root / "fleet", home.root / "left"
        self.alone = Alone(home.root / "alone")
        self.notes: list[str] = []  # sentences for the user: what was found damaged
        self.key_file = home.root / "device.key"
        self._membership, self._standing = self.root / "membership.json", self.root / "standing.safetensors"
        self._facts = self.root / "standing.json"
        self._outbox, self._tried = self.root / "outbox.safetensors", self.root / "outbox.tried"
        self._rejected, self._brought = self.root / "outbox.rejected", self.root / "brought"
        self._generalists, self._heard, self.windows = (self.root / name for name in ("generalists", "heard.json", "windows"))

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
        return member

    def save_membership(self, membership: Membership) -> None:
        """Writes it, if it changed."""
        data = json.dumps(asdict(membership), indent=1).encode()
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

    def hear(self, state: State, own: Collection[str]) -> Heard:
        """Notes what it says now; `own`: ids of updates that this home has sent."""
        heard = (before := self.heard).hear(state, own)
        write_heard(self._heard, heard)
        if heard.strangers > before.strangers:
            self.notes.append(heard.notice(self.key_file))
        return heard

    def note_trouble(self, reason: str) -> None:
        """Why an exchange failed; until the next one that does not."""
        write_heard(self._heard, replace(self.heard, trouble=reason))

    # Standing and outbox ------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """Where the device stands; a fresh one where nothing was exchanged yet.

        A damaged one is set aside; what is known without it, the facts, comes without a reference.
        """
        if not (self._standing.exists() or self._facts.exists()):
            return Standing()
        try:
            arrays, facts = read_record(self._standing, Written)
            word, words = facts.pop("joined", None), _said(self.root, "joined")
            if word is not None and words and word not in words:
                raise ComigsError(f"{self._standing} is another device's")
            reference = {name: array for name, array in arrays.items() if not name.startswith(_ON_TOP)}
            return Standing(**facts, reference=reference, on_top=select(arrays, _ON_TOP) or None)
        except (ComigsError, TypeError) as error:
            self._set_aside(self._standing, str(error))
        try:
            return Standing(**known(json.loads(self._facts.read_bytes()), Standing))
        except (OSError, ValueError, TypeError, AttributeError):
            return Standing()

    def save_standing(self, standing: Standing, member: Membership) -> None:
        """Writes it, and beside it what is needed where it or the membership is damaged."""
        facts = dict(vars(standing))
        reference, on_top = facts.pop("reference"), facts.pop("on_top") or {}
        tensors = reference | {_ON_TOP + name: array for name, array in on_top.items()}
        self._clear(self._facts)
        write_record(self._standing, tensors, facts | {"joined": member.joined})
        files.write_atomic(self._facts, json.dumps(facts | asdict(member)).encode())

    @property
    def has_standing(self) -> bool:
        """Whether there is one, and not only its facts."""
        return self._standing.is_file()

    def outbox(self) -> Sealed | None:
        """The update that waits; a damaged one is set aside: the standing has what is in it."""
        return self._sealed(self._outbox) if self._outbox.exists() else None

    def seal(self, update: Sealed) -> None:
        """Puts an update into the outbox, in place of one that is there."""
        self._tried.unlink(missing_ok=True)
        facts = dict(vars(update))
        write_record(self._outbox, facts.pop("packed"), facts)
        self._rejected.unlink(missing_ok=True)

    def _sealed(self, path: Path) -> Sealed | None:
        try:
            arrays, facts = read_record(path, Sealed)
            return Sealed(**facts, packed=arrays)
        except (ComigsError, TypeError) as error:
            self._set_aside(path, str(error))
            return None

    def _clear(self, path: Path) -> None:
        if path.is_dir():
            self._set_aside(path, f"{path} is a folder and no file")

    def _set_aside(self, path: Path, why: str) -> None:
        if (aside := path.with_name(f"{path.name}.damaged")).is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        if path.exists():
            path.replace(aside)
            self.notes.append(f"{why[:300]}; it was set aside, and what the model has learned is kept")
        else:
            self.notes.append(f"{why[:300]}; what the model has learned is kept")

    @property
    def was_tried(self) -> bool:
        """Whether the coordinator may have the update in the outbox already, although nobody heard so."""
        return self._tried.exists() and self._outbox.exists()

    def mark_tried(self) -> None:
        """From here on the update must be brought as it is, or be refused."""
        if not self.was_tried:
            files.write_atomic(self._tried, b"")

    @property
    def was_rejected(self) -> bool:
        """Whether the update in the outbox never counts as it is; it stays until another one holds what it holds."""
        return self._rejected.exists() and self._outbox.exists()

    def refused(self) -> Sealed | None:
        """The update in the outbox, if every one with its content is refused."""
        return self.outbox() if self.was_rejected and self._rejected.stat().st_size else None

    def mark_rejected(self, reason: str = "") -> None:
        """The next update takes its place; a `reason` holds for every one with the same content."""
        files.write_atomic(self._rejected, reason.encode())
        self._tried.unlink(missing_ok=True)

    def empty_outbox(self) -> None:
        """What is in it is somewhere else."""
        for path in (self._outbox, self._tried, self._rejected):
            path.unlink(missing_ok=True)

    # What counted -------------------------------------------------------------------------------------------------

    def move_to_brought(self, standing: Standing, update_id: str) -> None:
        """The outbox has arrived; and deletes what no way back of the fleet can reach."""
        files.make_folder(self._brought)
        if self._outbox.exists():
            self._outbox.replace(self._brought / update_id)
        self.empty_outbox()
        for path in self._brought.iterdir():
            if path.name not in standing.brought:
                files.remove(path)

    def brought(self, update_id: str) -> Sealed | None:
        """An update that counted; None where it is gone."""
        path = self._brought / update_id
        return self._sealed(path) if path.exists() else None

    # Generalists --------------------------------------------------------------------------------------------------

    def generalist_path(self, number: int) -> Path:
        """Where a generalist is kept; a folder there is set aside."""
        self._clear(path := self._generalists / f"{number:06d}.safetensors")
        return path

    def keep(self, standing: Standing, number: int, sha256: str) -> None:
        """Notes a generalist that was brought, and deletes all but the last three and the best; what came in part stays."""
        standing.kept[str(number)] = sha256
        wanted = {*sorted(map(int, standing.kept))[-KEPT_GENERALISTS:], standing.best, standing.trained_from}
        standing.kept = {each: sha256 for each, sha256 in standing.kept.items() if int(each) in wanted}
        names = {self.generalist_path(int(each)).name for each in standing.kept}
        for path in self._generalists.iterdir():  # also what a kill left between a file and the standing that names it
            if path.name not in names and path.suffix != ".part":
                files.remove(path)
        standing.brought = dict(list(standing.brought.items())[-KEPT_UPDATES:])


def _fact(root: Path, name: str) -> str | None:
    """Of the membership in this folder; its standing knows some of them too, where that is damaged."""
    return next(iter(_said(root, name)), None)


def _said(root: Path, name: str) -> list[str]:
    found = []
    for path in (root / "membership.json", root / "standing.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found.append(str(json.loads(path.read_bytes())[name]))
    return found
