"""The files of a device's books, in the folder of its fleet; without torch.

standing.safetensors     this device's generalist as far as the coordinator has received it, and what it started from;
                         standing.json: its facts and the membership once more, so that a damaged one
                         of the two loses neither the chain's head nor the fleet
outbox.safetensors       an update that the coordinator has not acknowledged; outbox.tried: it may have it all the same;
                         outbox.rejected: it never counts as it is
brought/ID               the last updates that counted: the fleet may go back behind them
generalists/000012       the last three generalists that were accepted, and the best of them all
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from comigs_edge import files
from comigs_edge.arrays import select
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.membership import Membership, said
from comigs_edge.fleet.records import known, read_record, write_record
from comigs_edge.fleet.standing import Sealed, Standing, Written

KEPT_GENERALISTS, KEPT_UPDATES, KEPT_HEADS = 3, 32, 256
_ON_TOP = "on_top."


class BookFiles:
    """In the folder `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[str] = []  # sentences for the user: what was found damaged
        self._standing, self._facts = root / "standing.safetensors", root / "standing.json"
        self._outbox, self._tried, self._rejected = (root / f"outbox.{name}" for name in ("safetensors", "tried", "rejected"))
        self._brought, self._generalists = root / "brought", root / "generalists"

    # Standing and outbox -------------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """Where the device stands; a fresh one where nothing was exchanged yet.

        A damaged one is set aside; what is known without it, the facts, comes without a reference.
        """
        if not (self._standing.exists() or self._facts.exists()):
            return Standing()
        try:
            arrays, facts = read_record(self._standing, Written)
            word, words = facts.pop("joined", None), said(self.root, "joined")
            if word is not None and words and word not in words:
                raise ComigsError(f"{self._standing} is another device's")
            reference = {name: array for name, array in arrays.items() if not name.startswith(_ON_TOP)}
            return Standing(**facts, reference=reference, on_top=select(arrays, _ON_TOP) or None)
        except (ComigsError, TypeError) as error:
            self.set_aside(self._standing, str(error))
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
        files.write_atomic(self._facts, json.dumps(facts | member.facts()).encode())

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
            self.set_aside(path, str(error))
            return None

    def _clear(self, path: Path) -> None:
        if path.is_dir():
            self.set_aside(path, f"{path} is a folder and no file")

    def set_aside(self, path: Path, why: str) -> None:
        """Moves what is damaged out of the way, and tells the user."""
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
