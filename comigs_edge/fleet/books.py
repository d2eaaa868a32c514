"""A device's books in its fleet: what the fleet has received of its generalist, what waits, what was taken over. No sockets.

An update is the device's generalist less its reference: what the fleet has received of it so far. When an update counts
the reference moves by exactly what was sent, so that

  - nothing is counted twice: a retry is the same update, and what counted is in the reference;
  - nothing is lost: what rounding took away, and what was learned meanwhile, is in the next update (error feedback);
  - a new generalist is taken over with what was not sent yet on top of it.

Generalist 0 is an initial one, made from a seed and sent by the first device: it says nothing of any text. What a device
learned before it joined stays on top of it, and comes as the device's first update.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np

from comigs_edge.arrays import add, digest, subtract, zeros
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.arrival import bring
from comigs_edge.fleet.chain import Check, Link, follow
from comigs_edge.fleet.folder import FleetFolder, Sealed
from comigs_edge.fleet.outbox import pack, unpack
from comigs_edge.fleet.outcome import Outcome
from comigs_edge.fleet.transport import News, Transport
from comigs_edge.progress import SILENT, Progress
from coordinator.protocol import compress, rounds, wire
from coordinator.protocol.aggregate import aggregate
from coordinator.protocol.generalist import may_leave
from coordinator.protocol.messages import Manifest, SignedManifest, State
from coordinator.protocol.wire import Arrays, Shapes


class Books:
    """Of one device, on its disk. `gate`: how much worse (nats a token) a new generalist may make the validation text.

    `initial` makes the generalist with which this device's training began.
    """

    def __init__(
        self, folder: FleetFolder, shapes: Shapes, initial: Callable[[], Arrays], base_sha256: str, gate: float,
        reports_loss: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.gate, self._reports_loss = folder, gate, reports_loss
        self._shapes = {name: shape for name, shape in shapes.items() if may_leave(name)}
        self._initial, self._was_in_a_fleet, self._is_on_top = initial, False, False
        self.membership, self.standing = folder.membership(), folder.standing()
        self._check = Check(self.membership.fleet, self.membership.signing_key, base_sha256)
        if not self.standing.reference:
            self.standing.reference = zeros(self._shapes)

    # A training's begin -------------------------------------------------------------------------------------------

    @property
    def mark(self) -> str:
        """Names what was exchanged and sealed so far; a checkpoint keeps it."""
        update = self.folder.outbox()
        return f"{self.membership.joined}/{self.standing.number}/{update.id if update else ''}"

    def resume(self, generalist: Arrays, mark: str | None) -> Arrays:
        """The generalist to train on with; `mark` is the one that was kept with `generalist`, in a checkpoint or with adapters.

        Both may be older than what was exchanged or sealed since: then the generalist as it was sent is the one, so that
        no step is sent twice.
        """
        self._was_in_a_fleet = mark is not None and not mark.startswith(f"{self.membership.joined}/0/")
        if self.standing.number == 0 or mark == self.mark:
            return generalist
        update = self.folder.outbox()
        return add(self.standing.reference, {} if update is None else unpack(update, self._shapes))

    def frozen(self) -> set[str]:
        """The generalist's tensors that this round's averaging does not train."""
        trained = rounds.trained_names(self._shapes, self.membership.averaging, self.standing.trained_from + 1)
        return self._shapes.keys() - set(trained)

    # Sending ------------------------------------------------------------------------------------------------------

    def pack(self, generalist: Arrays | None, loss: float | None = None) -> Sealed:
        """The update as it would be sent now; without a generalist: what its tensors would look like."""
        standing = self.standing
        change = subtract(zeros(self._shapes) if generalist is None else generalist, standing.reference)
        start, loss = max(0, standing.trained_from), loss if self._reports_loss else None
        return pack(change, start, self.membership, standing.unsent_tokens, loss)

    def seal(self, generalist: Arrays, loss: float | None) -> None:
        """Puts what was not sent yet into the outbox; before the first take-over only its tokens are noted."""
        if self.standing.trained_from < 0:
            self.folder.save_standing(self.standing)
        else:
            self._put(self.pack(generalist, loss))

    def seal_initial(self) -> None:
        """Puts the generalist into the outbox with which a fleet begins."""
        initial = self._initial()
        self._put(pack({name: initial[name] for name in self._shapes}, -1, self.membership))

    def _put(self, update: Sealed) -> None:
        """Replaces what waits, unless that may have arrived: then it goes first, as it is."""
        if not self.folder.was_tried:
            self.folder.seal(update)

    def seal_rest(self, generalist: Arrays) -> bool:
        """At a training's end: what the open round did not take goes to the outbox. Returns whether something waits."""
        if self.standing.unsent_tokens and self.folder.outbox() is None:
            self.seal(generalist, None)
        return self.folder.outbox() is not None

    def to_bring(self) -> Sealed | None:
        """What waits and does not count yet."""
        update = self.folder.outbox()
        if update is not None and update.id == self.standing.acknowledged:  # it counted, and then the power went
            self.folder.empty_outbox()
            return None
        return update

    def enter(self, news: News, brought: Sealed | None, outcome: Outcome) -> State:
        """Enters what the fleet says: its settings, and what became of the update that was brought."""
        self.membership = replace(self.membership, **msgspec.structs.asdict(news.state.settings))
        self.folder.save_membership(self.membership)
        if brought is not None:
            counts = brought.id in news.state.counted
            outcome.receipts += [news.receipt] if news.receipt else []
            outcome.had_arrived |= counts and news.receipt is None
            if counts or news.receipt is not None:
                self._acknowledge(brought)
            elif news.is_rejected:  # its progress stays in the generalist and comes with the next update
                self.folder.empty_outbox()
        return news.state

    def _acknowledge(self, update: Sealed) -> None:
        """The reference moves by what was sent."""
        standing = self.standing
        standing.reference = add(standing.reference, unpack(update, self._shapes))
        standing.acknowledged = update.id
        standing.unsent_tokens = max(0, standing.unsent_tokens - update.tokens)
        standing.number += update.trained_from >= 0  # an initial generalist is nothing that this device has learned
        self.folder.save_standing(standing)
        self.folder.empty_outbox()

    # Taking over --------------------------------------------------------------------------------------------------

    def follow(self, newest: SignedManifest, fetch: Callable[[int], list[SignedManifest]]) -> Link | None:
        """The newest generalist's place in the chain; None where it was taken over or refused. Raises `ForkedChain`."""
        link = follow(newest, self.standing.head, self.standing.head_hash, fetch, self._check)
        return None if link.manifest.round in (self.standing.trained_from, self.standing.refused) else link

    def begin_with(self, generalist: Arrays, fetch: Callable[[int], list[SignedManifest]]) -> None:
        """Before the first take-over: keeps what was learned before joining, if the fleet began where this device did.

        Of a generalist that was in a fleet before, nobody knows which part of it is this device's own.
        """
        standing = self.standing
        if standing.number or standing.acknowledged or self._was_in_a_fleet:
            return
        initial = self._initial()
        if digest(initial) == digest(generalist):
            return
        published = wire.encode(aggregate(zeros(self._shapes), [(initial, rounds.ONE)]))
        first = self._check(fetch(-1)[0])
        if (first.round, first.sha256) == (0, hashlib.sha256(published).hexdigest()):
            self._is_on_top, standing.reference = True, initial

    def bring(self, manifest: Manifest, transport: Transport, progress: Progress = SILENT) -> int:
        """Brings a generalist to its place, unless it is there; returns the bytes that came."""
        number, path = manifest.round, self.folder.generalist_path(manifest.round)
        if self.standing.kept.get(str(number)) == manifest.sha256 and path.exists():
            return 0
        if manifest.size != (size := wire.encoded_size(compress.table(self._shapes, "float32"))):
            raise ComigsError(f"generalist {number} has {manifest.size:,} bytes and not {size:,}; nothing was taken over")
        kept = {int(number): sha256 for number, sha256 in self.standing.kept.items()}
        came = bring(manifest, path, self._shapes, kept, self._read, transport, progress)
        self.folder.keep(self.standing, number, manifest.sha256)
        return came

    def compare_with(self, link: Link, generalist: Arrays) -> tuple[Arrays | None, Arrays]:
        """The generalists to compare, before and after; before is None where the new one is taken over unseen.

        Both have what was not sent yet on top: nothing of a device that began elsewhere, see `begin_with`.
        """
        standing = self.standing
        is_known = standing.number or standing.acknowledged or self._is_on_top
        unsent = subtract(generalist, standing.reference) if is_known else {}
        after = add(self._read(link.manifest.round), unsent)
        if standing.trained_from < 0:
            return None, after
        # Where the one that training started from is not kept any more: what the fleet has of this device's.
        is_kept = str(standing.trained_from) in standing.kept
        return add(self._read(standing.trained_from) if is_kept else standing.reference, unsent), after

    def take_over(self, link: Link, generalist: Arrays) -> None:
        """Trains from this generalist on, with what was not sent yet on top: `generalist`."""
        standing, reference = self.standing, self._read(link.manifest.round)
        if standing.trained_from < 0 and digest(generalist) != digest(reference):
            standing.unsent_tokens = max(1, standing.unsent_tokens)  # nobody counted those from before it joined
        standing.trained_from, standing.reference = link.manifest.round, reference
        self._move_to(link)

    def refuse(self, link: Link) -> None:
        """Keeps the old generalist."""
        self.standing.refused = link.manifest.round
        self._move_to(link)

    def roll_back(self, number: int | None) -> tuple[int, Arrays]:
        """Returns to a kept generalist, the one before by default; raises `ComigsError` if it is not kept.

        What the coordinator publishes next is taken over again; the present one is not.
        """
        standing = self.standing
        kept = sorted(map(int, standing.kept))
        older = [each for each in kept if each < standing.trained_from]
        target = number if number is not None else (older[-1] if older else None)
        if target is None or target not in kept:
            wanted = "an older generalist" if number is None else f"generalist {number}"
            there = ", ".join(map(str, kept)) or "none"
            raise ComigsError(f"{wanted} is not kept on this device (kept: {there}); train on with: comigs-edge train")
        arrays = self._read(target)
        self.folder.empty_outbox()
        standing.refused, standing.trained_from, standing.reference = standing.head, target, dict(arrays)
        self._save()
        return target, arrays

    def _move_to(self, link: Link) -> None:
        self.standing.head, self.standing.head_hash = link.manifest.round, link.hash
        self._save()

    def _read(self, number: int) -> Arrays:
        table = compress.table(self._shapes, "float32")
        path = self.folder.generalist_path(number)
        arrays = wire.decode_expected(path.read_bytes(), table, str(path))
        return {name: np.array(array) for name, array in arrays.items()}

    def _save(self) -> None:
        self.standing.number += 1
        self.folder.save_standing(self.standing)
