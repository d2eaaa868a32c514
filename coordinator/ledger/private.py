"""Private rounds of a fleet: windows in place of single updates, and the round that each window's sum closes.

private/windows.db   what came for the windows that are on their way
private/SHA256       masked updates of them
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from coordinator.ledger.fleet import Fleet
from coordinator.ledger.members import Device
from coordinator.ledger.payloads import sync_folder
from coordinator.ledger.roster import find_roster, is_listed, listed
from coordinator.ledger.window import OpenWindow, Part
from coordinator.ledger.windows import Windows
from coordinator.protocol import compress, counting, keys, rounds, wire
from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import State
from coordinator.protocol.private.cohort import Distrust
from coordinator.protocol.private.masks import Ring, mean_change
from coordinator.protocol.private.messages import Answer, Masked, Stage, Window
from coordinator.protocol.private.opening import Unopened, open_sum

FOLDER = "private"
log = logging.getLogger("comigs-coordinator")


class Sum(NamedTuple):
    """What a window brings: the payload with the mean of its updates, the norm of that, and the id of each device's update."""

    window: OpenWindow
    sha256: str
    norm: float
    updates: dict[str, str]  # device -> id of its update


class PrivateRounds:
    """Of one fleet; nothing else counts in it but its first generalist, which says nothing of any text."""

    def __init__(self, fleet: Fleet, root: Path) -> None:
        self._fleet, self._folder = fleet, root / FOLDER
        self._folder.mkdir(mode=0o700, exist_ok=True)
        # What came before the fleet was private is brought again, in a sum: a round of both would show which part is whose.
        fleet.database.run("DELETE FROM updates WHERE round > 0 AND round IN (SELECT number FROM rounds WHERE closed IS NULL)")
        self.windows = Windows(self._folder / "windows.db", fleet.signing_key, fleet.id, fleet.clock)
        self._arriving: set[str] = set()  # SHA-256 of masked updates that are made files, and are no parts yet
        self._tried = ("", 0)  # a window, and how many answers did not open it
        self._tidy()

    def close(self) -> None:
        """Closes the windows' file."""
        self.windows.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of an update's tensors."""
        generalist = self._fleet.members.generalist
        return counting.update_shapes(generalist.tensors if generalist else {}, self._fleet.config.rounds.averaging, 0)

    # For devices --------------------------------------------------------------------------------------------------

    def state(self, device: Device) -> State:
        """Where the fleet stands, for this device: what it may give comes in windows, which begin with the first generalist."""
        state = self._fleet.state(device)
        if state.newest is not None:
            state.windows, state.is_listed = self.windows.notes(device.id), is_listed(self._fleet, device)
            for note in state.windows:
                note.wants = "" if note.wants == "keys" and not state.is_listed else note.wants
            state.has_contributed = all(note.wants != "masked" for note in state.windows)
            bounds = (window.terms.bound for window in self.windows.open.values())  # of before the owner changed it
            state.norm_limit, state.waits_for = min((self._fleet.config.rounds.norm_bound, *bounds)), self.windows.waits_for
        return state

    def show(self, name: str, device: Device) -> Window:
        """A window for one device, and the roster of the fleet's owner; raises `Refused` where it is over."""
        window, found = self.windows.find(name).seen_by(device.id), find_roster(self._fleet)
        window.roster = None if found is None else found[0]
        return window

    def check(self, window: str, stage: Stage, device: Device, part: Part) -> bool:
        """Whether the part is new; raises `Refused` where it is not wanted or cannot be used."""
        if not self.windows.check(window, stage, device.id, part):
            return False
        self._fleet.members.member(device.id)  # it may have been revoked since it asked
        if stage == "keys" and not is_listed(self._fleet, device):
            raise Refused(409, "not_wanted", f"{device.name} is not in the roster that this fleet's owner signed")
        if isinstance(part, Masked) and self._is_known(device.id, part.update_id):
            raise Refused(409, "already_counted", "this update counts already; ask where the fleet stands")
        return True

    @contextlib.contextmanager
    def arriving(self, part: Part) -> Iterator[None]:
        """What comes with this part is not tidied away until it was put."""
        names = {part.sha256} if isinstance(part, Masked) else set()
        self._arriving |= names
        try:
            yield
        finally:
            self._arriving -= names

    def finish(self, device: Device, window: str, sha256: str) -> None:
        """Makes an upload a masked update, durably; raises `Refused`."""
        payloads, size = self._fleet.payloads, 4 * self.windows.find(window).terms.numbers
        if (part := payloads.finish(device.id, sha256, size)) == payloads.path(sha256):
            raise Refused(422, "bad_part", "this is no masked update: the coordinator has such a payload")
        part.replace(self._folder / sha256)
        sync_folder(self._folder)

    def put(self, window: str, stage: Stage, device: Device, part: Part) -> None:
        """Keeps a part, unless it is here already, and does what it completes."""
        if self.check(window, stage, device, part):
            self.windows.put(window, device.id, part)
            self.advance()

    # What time brings ---------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Ends stages that are complete, and begins the next window."""
        fleet, rules = self._fleet, self._fleet.config.rounds
        if (newest := fleet.chain.newest) is not None:
            numbers = sum(math.prod(shape) for shape in self.shapes.values())
            self.windows.begin(rules.min_devices, rules.norm_bound, numbers)
            ids = {each.id for each in listed(fleet, fleet.members.devices.values())}
            self.windows.advance(rules, len(listed(fleet, fleet.awaited_devices())), keys.chain_hash(newest), ids)
            self._tidy()

    def _tidy(self) -> None:
        """Deletes masked updates of windows that are over."""
        wanted = self.windows.masked | self._arriving
        for path in self._folder.iterdir():
            if len(path.name) == 64 and path.name not in wanted:
                path.unlink(missing_ok=True)

    def to_open(self) -> tuple[OpenWindow, dict[str, Answer]] | None:
        """A window with answers that may open its sum, and were not tried yet."""
        for window in self.windows.open.values():
            if window.can_be_opened and self._tried != (window.terms.window, len(window.answers)):
                return window, window.answers
        return None

    def add_up(self, window: OpenWindow, answers: dict[str, Answer]) -> Sum | None:
        """Opens a sum and writes its mean; None where the answers do not open it. No ledger: may run in another thread."""
        sent = {device: part for device, part in sorted(window.parts["masked"].items()) if isinstance(part, Masked)}
        table, numbers = compress.table(self.shapes, "float16"), window.terms.numbers
        try:
            updates = (_read(self._folder / part.sha256, numbers) for part in sent.values())
            total = open_sum(window.cohort, window.what, answers, updates)
        except (Unopened, Distrust) as error:
            log.warning("the sum of a private window cannot be opened: %s", error)
            self._tried = window.terms.window, len(answers)
            return None
        change, norm = mean_change(total, len(sent), self.shapes, window.terms.bound)
        sha256 = self._fleet.payloads.write(wire.pieces(change), wire.encoded_size(table))
        return Sum(window, sha256, norm, {device: part.update_id for device, part in sent.items()})

    def settle(self, found: Sum) -> None:
        """The mean counts once for each of its devices and closes the round; and nothing is left of the window."""
        if found.window.terms.window not in self.windows.open:
            return  # given up meanwhile: its devices may have heard so, and bring what they have in the next
        database, number, now = self._fleet.database, self._fleet.open_round, self._fleet.clock()
        if is_new := not any(self._is_known(*each) for each in found.updates.items()):  # otherwise a crash came between the two
            with database.transaction():
                for device, update_id in found.updates.items():
                    self._fleet.enter(
                        device=device, round=number, sha256=found.sha256, trained_from=self._fleet.chain.newest_number,
                        weight=rounds.ONE, tokens=0, size=4 * found.window.terms.numbers, format="float16", update_id=update_id,
                        counted_weight=rounds.ONE,
                    )  # fmt: skip
                database.run("UPDATE rounds SET closed = ? WHERE number = ?", now, number)
                database.run("INSERT INTO rounds (number, opened) VALUES (?, ?)", number + 1, now)
            log.info("round %d: the sum of %d devices", number, len(found.updates))
            if found.norm > (bound := found.window.terms.bound):
                log.warning("round %d: a device sent more than the bound of %g; the mean was scaled down to it", number, bound)
        self.windows.end(found.window.terms.window, round=number if is_new else number - 1)
        self._tidy()

    def _is_known(self, device: str, update_id: str) -> bool:
        query = "SELECT 1 FROM updates WHERE device = ? AND update_id = ?"
        return self._fleet.database.value(query, device, update_id) is not None


@contextlib.contextmanager
def open_private(fleet: Fleet, root: Path) -> Iterator[PrivateRounds | None]:
    """The private rounds of a fleet that has such; of one that has none any more, nothing is left of them."""
    if not fleet.config.rounds.private:
        shutil.rmtree(root / FOLDER, ignore_errors=True)
        yield None
        return
    with contextlib.closing(PrivateRounds(fleet, root)) as private:
        yield private


def _read(path: Path, numbers: int) -> Ring:
    """A masked update; raises `Distrust` for one that is damaged or gone."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != path.name or len(data) != 4 * numbers:
        raise Distrust("a masked update is damaged or gone")
    return np.frombuffer(data, "<u4")
