"""The generalists that a device keeps: brought once, and anew where one that is needed is damaged or gone."""

from __future__ import annotations

import hashlib

import numpy as np

from comigs_edge.arrays import add, subtract
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.arrival import bring
from comigs_edge.fleet.chain import Check
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.outcome import Judgement
from comigs_edge.fleet.standing import Standing
from comigs_edge.fleet.transport import Offline, Transport
from comigs_edge.progress import SILENT, Progress
from coordinator.protocol import compress, wire
from coordinator.protocol.errors import WireError
from coordinator.protocol.messages import Manifest
from coordinator.protocol.wire import Arrays, Shapes


class Kept:
    """Those that `standing.kept` names, with their SHA-256."""

    def __init__(self, folder: FleetFolder, standing: Standing, shapes: Shapes) -> None:
        self._folder, self._standing, self._shapes = folder, standing, shapes

    def read(self, number: int) -> Arrays:
        """A generalist; raises `WireError` for one that is damaged, or `OSError` where it is gone."""
        data = self._folder.generalist_path(number).read_bytes()
        if hashlib.sha256(data).hexdigest() != self._standing.kept.get(str(number)):
            raise WireError(f"generalist {number} on this device is damaged; run: comigs-edge sync")
        arrays = wire.decode_expected(data, compress.table(self._shapes, "float32"), f"generalist {number}")
        return {name: np.array(array) for name, array in arrays.items()}

    def whole(self, number: int) -> Arrays:
        """A generalist that is kept and whole; else nothing."""
        try:
            return self.read(number)
        except (OSError, WireError):
            return {}

    def bring(self, manifest: Manifest, transport: Transport, progress: Progress = SILENT) -> int:
        """Brings a generalist to its place, unless it is there; returns the bytes that came."""
        number, kept = manifest.round, self._standing.kept
        if kept.get(str(number)) == manifest.sha256 and self.whole(number):
            return 0
        path = self._folder.generalist_path(number)
        came = bring(manifest, path, self._shapes, kept, self.read, transport, progress)
        self._folder.keep(self._standing, number, manifest.sha256)
        return came

    def mend(self, transport: Transport, check: Check) -> None:
        """Brings anew those that the next one is compared with, where damaged or gone, and notes it; raises `Offline`."""
        standing = self._standing
        for number in sorted({standing.trained_from, standing.best} & set(map(int, standing.kept))):
            if self.whole(number):
                continue
            try:
                manifest = check(transport.manifests(number - 1)[0])
                if (manifest.round, manifest.sha256) != (number, standing.kept[str(number)]):
                    raise ComigsError("the coordinator has another one")
                self.bring(manifest, transport)
                became = "it was brought anew"
            except Offline:
                raise
            except (ComigsError, IndexError) as error:
                del standing.kept[str(number)]
                became = f"it cannot be brought anew ({error}), and the next one is judged without it"
            self._folder.notes.append(f"generalist {number} was damaged or gone on this device; {became}")

    def compare_with(self, number: int, generalist: Arrays) -> tuple[list[Arrays], Arrays]:
        """Those to compare, each with what was not sent yet on top: the present one and the best that is kept; the new one."""
        standing = self._standing
        unsent = subtract(generalist, standing.reference)
        after = add(self.read(number), unsent)
        if standing.trained_from < 0:
            return [generalist], after
        # Where the one that training started from is not kept any more: what the fleet has of this device's.
        before = [add(self.whole(standing.trained_from) or standing.reference, unsent)]
        if standing.best not in (-1, standing.trained_from) and (best := self.whole(standing.best)):
            before.append(add(best, unsent))
        return before, after

    def judged(self, number: int, losses: Judgement) -> None:
        """Remembers which of the generalists that were compared is the best."""
        if losses.after <= losses.before:
            self._standing.best = number
        elif losses.before_is_present:
            self._standing.best = self._standing.trained_from
