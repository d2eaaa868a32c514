"""The updates of this device that counted, which the fleet may go back behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce

from comigs_edge.arrays import add, norm, zeros
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.outbox import unpack
from comigs_edge.fleet.standing import Sealed, Standing
from coordinator.protocol.wire import Arrays

Chosen = Callable[[int, str], bool]  # by the round that an update counted in, and its id


class Brought:
    """Those that the `standing` names, as they lie in the `folder`."""

    def __init__(self, folder: FleetFolder, standing: Standing, shapes: dict[str, tuple[int, ...]]) -> None:
        self._folder, self._standing, self._shapes = folder, standing, shapes

    def unpack(self, update: Sealed) -> Arrays:
        """An update as arrays, with zeros where it holds nothing."""
        return zeros(self._shapes) | unpack(update, self._shapes)

    def sum(self, chosen: Chosen) -> Arrays:
        """The sum of those that are chosen."""
        return reduce(add, map(self.unpack, self._read(chosen)), zeros(self._shapes))

    def forget(self, chosen: Chosen) -> Arrays:
        """The sum of those that are chosen and do not count any more: their tokens are not sent."""
        standing, changes = self._standing, self.sum(chosen)
        lost = {each: at for each, at in standing.brought.items() if chosen(at, each)}
        standing.unsent_tokens += sum(update.tokens for update in self._read(chosen))
        standing.unsent_tokens = max(int(norm(changes) > 0), standing.unsent_tokens)
        standing.brought = {each: at for each, at in standing.brought.items() if each not in lost}
        return changes

    def _read(self, chosen: Chosen) -> Iterator[Sealed]:
        for update_id, number in self._standing.brought.items():
            if chosen(number, update_id) and (update := self._folder.brought(update_id)):
                yield update
