"""A device's books in its fleet: what the fleet has received of its generalist, what waits, what was taken over. No sockets.

An update is the device's generalist less its reference: what the fleet has received of it so far. When an update counts
the reference moves by exactly what was sent, so that
  - nothing is counted twice: a retry is the same update, and what counted is in the reference;
  - nothing is lost: what rounding took away, what is beyond the fleet's bound on norms, and what was learned meanwhile, is
    in the next update (error feedback);
  - a new generalist is taken over with what was not sent yet on top of it, and what counted in rounds that the fleet went
    back behind; such updates are kept for a while.

Generalist 0 is an initial one, made from a seed and sent by the first device: it says nothing of any text. What a device
learned before it joined is its generalist less the one that its own training began with: it stays on top of what the fleet
has, and comes as the device's first update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import msgspec

from comigs_edge.arrays import add, digest, subtract, zeros
from comigs_edge.fleet.book_files import KEPT_HEADS
from comigs_edge.fleet.brought import Brought
from comigs_edge.fleet.chain import Check, Fetch, Link, follow, set_back
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.kept import Kept
from comigs_edge.fleet.outbox import check_settings, fits, is_same, most, pack, say_why, within
from comigs_edge.fleet.outcome import Outcome
from comigs_edge.fleet.standing import Sealed
from comigs_edge.fleet.transport import News
from comigs_edge.fleet.waiting import present_mark, unsent_tokens, was_in_a_fleet
from comigs_edge.home.marks import Mark
from coordinator.protocol import rounds
from coordinator.protocol.errors import WireError
from coordinator.protocol.generalist import may_leave
from coordinator.protocol.messages import State
from coordinator.protocol.wire import Arrays, Shapes


class Books:
    """Of one device, on its disk. `initial` makes the generalist that its training began with; the `gate` is in nats a token."""

    def __init__(
        self, folder: FleetFolder, shapes: Shapes, initial: Callable[[], Arrays], base_sha256: str, gate: float,
        reports_loss: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.gate, self.reports_loss = folder, gate, reports_loss
        self._shapes = {name: shape for name, shape in shapes.items() if may_leave(name)}
        self.initial, self._was_in_a_fleet, self._norm_limit = initial, False, math.inf
        self.membership, self.standing = folder.membership(), folder.standing()
        self.kept = Kept(folder, self.standing, self._shapes)
        self.check = Check(self.membership.fleet, self.membership.signing_key, base_sha256)
        self.brought = Brought(folder, self.standing, self._shapes)
        self._has_reference = bool(self.standing.reference) or self.standing.number == 0 or self._recover()
        if not self.standing.reference:
            self.standing.reference = zeros(self._shapes)
        if self.standing.on_top is None:
            self.standing.on_top = self.brought.unpack(update) if (update := folder.outbox()) else zeros(self._shapes)

    def _recover(self) -> bool:
        """Makes a lost reference anew, of the generalist that training started from and what was brought; returns success."""
        since = self.standing.trained_from
        try:
            self.standing.reference = add(self.kept.read(since), self.brought.sum(lambda number, _: number > since))
        except (OSError, WireError):
            return False
        return True

    # A training's begin -------------------------------------------------------------------------------------------

    @property
    def mark(self) -> str:
        """What a checkpoint keeps of these books."""
        return present_mark(self.membership, self.standing, self.folder.outbox())

    @property
    def waits(self) -> bool:
        """Whether something was learned that the fleet has not received."""
        return self.standing.unsent_tokens > 0 or self.folder.outbox() is not None

    def resume(self, generalist: Arrays, mark: str | None, tokens: int | None = None) -> Arrays:
        """The generalist to train on with; `mark` and `tokens` were kept with `generalist`, in a checkpoint or with adapters.

        They may be older than what was exchanged or sealed since: then the generalist as it was sent is the one, so that no step
        is sent twice. The tokens that it has learned and no update brought are noted with it.
        """
        kept, standing = Mark(mark, tokens), self.standing
        self._was_in_a_fleet = was_in_a_fleet(self.membership, mark)
        if standing.number and mark != self.mark and self._has_reference:
            alone = self.folder.alone.learned(standing, generalist, kept)
            generalist = add(standing.reference, standing.on_top or {})
            if alone is not None:
                generalist = add(generalist, alone)
                self.note(generalist)
                self.save()
        else:
            standing.unsent_tokens = unsent_tokens(self.membership, standing, kept)
        self.folder.alone.forget(kept)
        if standing.dropped:
            self._take_back(generalist)
        return generalist

    def _take_back(self, generalist: Arrays) -> None:
        """What the coordinator dropped when it removed this device is on top again."""
        standing = self.standing
        self.to_bring()  # the last one may not lie in its place yet
        dropped = self.brought.forget(lambda _, update_id: update_id in standing.dropped)
        standing.reference, standing.dropped = subtract(standing.reference, dropped), []
        self.note(generalist)
        self.save()

    def frozen(self) -> set[str]:
        """The generalist's tensors that this round's averaging does not train."""
        return self._shapes.keys() - rounds.trained_names(self._shapes, self.membership.averaging, self.standing.trained_from + 1)

    # Sending ------------------------------------------------------------------------------------------------------

    def note(self, generalist: Arrays, tokens: int = 0) -> None:
        """What the device has learned now; it is written with the next change of the books."""
        standing = self.standing
        if not self._has_reference:  # nobody knows which part of it is not sent yet
            standing.reference, self._has_reference = dict(generalist), True
        standing.on_top = subtract(generalist, standing.reference)
        standing.unsent_tokens += tokens

    def pack(self, generalist: Arrays | None, loss: float | None = None) -> Sealed:
        """The update as it would be sent now; without a generalist: what its tensors would look like.

        One that is larger than the fleet's bounds is scaled down to it; the rest comes with the next ones.
        """
        standing, tokens = self.standing, self.standing.unsent_tokens
        change = subtract(zeros(self._shapes) if generalist is None else generalist, standing.reference)
        change, share = within(change, self._norm_limit, most(self.membership))
        loss = loss if self.reports_loss else None
        return pack(change, max(0, standing.trained_from), self.membership, int(tokens * share), loss)

    def seal(self, generalist: Arrays, loss: float | None) -> None:
        """Puts what was not sent yet into the outbox; before the first take-over it is only noted."""
        self.note(generalist)
        if self.standing.trained_from < 0:
            self.write()
        else:
            self._put(self.pack(generalist, loss))

    def seal_initial(self) -> None:
        """Puts the generalist into the outbox with which a fleet begins."""
        initial = self.initial()
        self._put(pack({name: initial[name] for name in self._shapes}, -1, self.membership))

    def _put(self, update: Sealed) -> None:
        self.write()
        if not (self.folder.was_tried or is_same(self.folder.refused(), update)):  # what may have arrived goes first, as it is
            self.folder.seal(update)

    def seal_rest(self, generalist: Arrays) -> None:
        """At a training's end: what the open round did not take goes to the outbox."""
        if self.standing.unsent_tokens:
            is_taken = self.folder.outbox() is not None and not self.folder.was_rejected
            self.keep(generalist) if is_taken else self.seal(generalist, None)

    def keep(self, generalist: Arrays, tokens: int = 0) -> None:
        """Writes what was learned and no update can hold yet; before the first exchange the adapters alone hold it."""
        self.note(generalist, tokens)
        if self.standing.number:
            self.save()

    def to_bring(self) -> Sealed | None:
        """What waits and does not count yet."""
        update = self.folder.outbox()
        if update is not None and update.id == self.standing.acknowledged:  # it counted, and then the power went
            self.write()
            self.folder.move_to_brought(self.standing, update.id)
            return None
        return None if self.folder.was_rejected else update

    def shorten(self, update: Sealed) -> Sealed:
        """The update that waits and was not tried; one that the fleet does not take as it is, by now, is sealed again."""
        if update.trained_from >= 0 and not fits(update, self.brought.unpack(update), self._norm_limit, self.membership):
            update = self.pack(add(self.standing.reference, self.standing.on_top or {}), update.validation_loss)
            self._put(update)
        return update

    def enter(self, news: News, brought: Sealed | None, outcome: Outcome) -> State:
        """Enters what the fleet says: its settings, and what became of the update that was brought."""
        state = news.state
        check_settings(state.settings, self.membership)
        self.membership = replace(self.membership, **msgspec.structs.asdict(state.settings))
        self.folder.save_membership(self.membership)
        if self._has_reference and self.standing.number and not self.folder.has_standing:
            self.write()
        self._norm_limit = math.inf if state.norm_limit is None else state.norm_limit
        own = {*self.standing.brought, self.standing.acknowledged, "" if brought is None else brought.id}
        outcome.heard = self.folder.hear(state, own, news.kept_out)
        if brought is not None:
            counts = brought.id in state.counted
            outcome.receipts += [news.receipt] if news.receipt else []
            outcome.had_arrived |= counts and news.receipt is None
            if counts or news.receipt is not None:
                rounds_of = dict(zip(state.counted, state.counted_in, strict=False))  # an old coordinator does not say them
                known = rounds_of.get(brought.id, state.open_round if state.has_contributed else self.standing.head + 1)
                self._acknowledge(brought, news.receipt.round if news.receipt else known)
            elif news.is_rejected:  # its progress stays in the generalist and comes with the next update
                self.folder.mark_rejected(news.reason)
        self.folder.notes += say_why(news)
        return state

    def _acknowledge(self, update: Sealed, number: int) -> None:
        """The reference moves by what was sent."""
        standing, sent = self.standing, self.brought.unpack(update)
        if update.trained_from < 0:  # an initial generalist is nothing that this device has learned
            generalist = add(standing.reference, standing.on_top or {})
            standing.reference, standing.on_top = sent, subtract(generalist, sent)
        else:
            standing.reference = add(standing.reference, sent)
            standing.on_top = subtract(standing.on_top or {}, sent)
            standing.brought[update.id] = number
            standing.number += 1
        standing.acknowledged = update.id
        standing.unsent_tokens = max(0, standing.unsent_tokens - update.tokens)
        self.write()
        self.folder.move_to_brought(standing, update.id)

    # Taking over --------------------------------------------------------------------------------------------------

    def follow(self, state: State, fetch: Fetch) -> Link | None:
        """The newest generalist's place in the chain; None where it was taken over or refused. Raises `ForkedChain`."""
        standing = self.standing
        if state.newest is None:
            if standing.head >= 0:
                raise set_back(-1, standing.head)
            return None
        link = follow(state.newest, standing.head, standing.head_hash, fetch, self.check)
        return None if link.manifest.round in (standing.trained_from, standing.refused) else link

    def begin_with(self, generalist: Arrays) -> None:
        """Before the first take-over: the reference is what this device's training began with.

        Of a generalist that was in another fleet before, nobody knows which part of it is this device's own.
        """
        standing = self.standing
        if standing.head < 0 and not standing.acknowledged:
            begun = generalist if self._was_in_a_fleet else self.initial()
            standing.reference = {name: begun[name] for name in self._shapes}
            self.note(generalist)

    def take_over(self, link: Link, generalist: Arrays) -> Arrays:
        """Trains from this one on, with what was not sent yet on top: `generalist`; returns it, with what was turned back too."""
        standing, reference = self.standing, self.kept.read(link.manifest.round)
        if link.turned_back:
            generalist = add(generalist, self.brought.forget(lambda number, _: number in link.turned_back))
        if standing.trained_from < 0 and digest(generalist) != digest(reference):
            standing.unsent_tokens = max(1, standing.unsent_tokens)  # nobody counted those that come again
        standing.trained_from, standing.reference = link.manifest.round, reference
        self._move_to(link, generalist)
        return generalist

    def refuse(self, link: Link, generalist: Arrays) -> None:
        """Keeps the old generalist, and what this device brought in rounds that were turned back."""
        standing, again = self.standing, self.brought.forget(lambda number, _: number in link.turned_back)
        standing.refused, standing.reference = link.manifest.round, subtract(standing.reference, again)
        self._move_to(link, generalist)

    def _move_to(self, link: Link, generalist: Arrays) -> None:
        standing = self.standing
        standing.head, standing.head_hash = link.manifest.round, link.hash
        standing.heads = dict(list((standing.heads | link.hashes).items())[-KEPT_HEADS:])
        # An open round's updates count in the next one where the fleet went back meanwhile.
        standing.brought = {each: at + (at in link.moved) for each, at in standing.brought.items()}
        self.note(generalist)
        self.save()

    def save(self) -> None:
        """Writes the standing, under the next number."""
        self.standing.number += 1
        self.write()

    def write(self) -> None:
        """Writes the standing; always before the outbox changes, which makes the marks of what was kept before older ones."""
        self.folder.save_standing(self.standing, self.membership)
