"""An exchange between a device and its fleet: brings what was learned, takes over what is new, waits for nobody.

Without a connection the update goes to the outbox, and training continues. It is brought later as what it is, a change of
an older generalist, and the coordinator weights it by 1 / sqrt(1 + generalists since). One that is more than the
coordinator's `max_staleness` (20) behind is not sent as such: its progress is put on top of the newest generalist and comes
with the next update.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from comigs_edge.fleet.back import go_back, take_back_lost
from comigs_edge.fleet.books import Books
from comigs_edge.fleet.chain import ForkedChain, Link, restoration
from comigs_edge.fleet.outbox import check_settings
from comigs_edge.fleet.outcome import Judge, Judgement, Outcome
from comigs_edge.fleet.transport import Offline, Transport
from comigs_edge.home.marks import Mark
from comigs_edge.progress import SILENT, Progress
from coordinator.protocol.messages import Refusal, Settings, State
from coordinator.protocol.wire import Arrays

MAX_POLL = 3600.0  # seconds that a fleet may ask for before it is asked again
PAUSE, MAX_PAUSE = 5.0, 1800.0  # seconds before a fleet that is away is tried again: twice as long each time


class Exchange:
    """A device's books and the transport to its fleet."""

    def __init__(self, books: Books, transport: Transport, clock: Callable[[], float] = time.monotonic) -> None:
        self.books, self.transport = books, transport
        self._clock, self._not_before, self._failures = clock, 0.0, 0

    def is_due(self) -> bool:
        """Whether to speak to the fleet: not before it asked to, and ever more seldom while it is away."""
        return self._clock() >= self._not_before

    def run(
        self, generalist: Arrays, tokens: int, judge: Judge | None, loss: float | None = None, progress: Progress = SILENT
    ) -> Outcome:
        """Sends what was learned on `tokens` tokens, then takes over a newer generalist if there is one.

        An unreachable fleet is reported in the outcome, not raised. `loss` is the validation loss, sent by devices that
        opted in. Without `judge` a new generalist is taken over unseen.
        """
        outcome, standing = Outcome(), self.books.standing
        self.books.note(generalist, tokens)
        try:
            state = self._bring(outcome, progress)
            self._take_over(state, generalist, judge, outcome, progress)
            generalist = generalist if outcome.generalist is None else outcome.generalist
            if not state.has_contributed and self._seal(state, generalist, loss):
                state = self._bring(outcome, progress)
            self._failures = 0
            self._not_before = self._clock() + (min(state.next_poll_seconds, MAX_POLL) if state.has_contributed else 0.0)
        except Offline as error:
            outcome.offline, self._failures = str(error), self._failures + 1
            self._not_before = self._clock() + random.uniform(0, min(MAX_PAUSE, PAUSE * 2**self._failures))
            if standing.unsent_tokens:
                self.books.seal(generalist, loss)
        outcome.waits = self.books.waits
        return outcome

    def _seal(self, state: State, generalist: Arrays, loss: float | None) -> bool:
        """Puts what the open round can count into the outbox; returns whether there is something."""
        if state.open_round == 0:
            self.books.seal_initial()
        elif (
            state.newest is None
            or self.books.standing.trained_from < 0
            or not (self.books.standing.unsent_tokens or state.windows)
        ):
            return False
        else:
            self.books.seal(generalist, loss)
        return True

    def bring_waiting(self, interrupted: tuple[Arrays, Mark] | None, progress: Progress = SILENT) -> Outcome:
        """Brings the outbox, and takes over nothing; `interrupted` is the generalist of an interrupted training and its mark."""
        outcome = Outcome()
        if interrupted is not None:
            generalist, mark = interrupted
            self.books.note(self.books.resume(generalist, *mark))
        try:
            self._bring(outcome, progress)
        except Offline as error:
            outcome.offline = str(error)
        outcome.waits = self.books.waits
        return outcome

    def _bring(self, outcome: Outcome, progress: Progress) -> State:
        """Brings what waits, if the open round takes it; returns where the fleet stands then."""

        def leaves(size: int, settings: Settings) -> bool:
            check_settings(settings, self.books.membership)
            outcome.bytes_sent += size
            self.books.standing.bytes_sent += size
            if self.books.membership.is_private:  # another process may be the one that hears that it counts
                self.books.write()
            was_tried = self.books.folder.was_tried
            self.books.folder.mark_tried()
            return was_tried

        update = self.books.to_bring()
        if update is not None and not self.books.folder.was_tried:  # it may be of a time with another bound
            self.books.enter(self.transport.exchange(None, leaves, progress), None, outcome)
            update = self.books.shorten(update)
        before = self.books.folder.heard.counted or ()
        state = self.books.enter(self.transport.exchange(update, leaves, progress), update, outcome)
        take_back_lost(self.books, before, state)
        return state

    def _take_over(self, state: State, generalist: Arrays, judge: Judge | None, outcome: Outcome, progress: Progress) -> None:
        books = self.books
        link, generalist = self._follow(state, generalist, outcome)
        if link is None:
            return
        manifest = link.manifest
        books.begin_with(generalist)
        came = books.kept.bring(manifest, self.transport, progress)
        outcome.bytes_received += came
        books.standing.bytes_received += came
        books.kept.mend(self.transport, books.check)
        before, after = books.kept.compare_with(manifest.round, generalist)
        if judge is not None:
            outcome.judgement = losses = judge(before, after)
            books.kept.judged(manifest.round, losses)
            if not losses.after <= losses.before + books.gate:
                outcome.refused, is_first = manifest.round, books.standing.trained_from < 0
                books.refuse(link, generalist)
                if is_first:  # nobody else's business: this device has not trained with the fleet yet
                    return
                self.transport.refuse(self._refusal(manifest.round, losses))
                return
        outcome.generalist, outcome.taken_over = books.take_over(link, after), manifest.round

    def _follow(self, state: State, generalist: Arrays, outcome: Outcome) -> tuple[Link | None, Arrays]:
        """The link to take over, and the generalist, which goes back first where the coordinator was restored and says so."""
        books, fetch = self.books, self.transport.manifests
        note, is_ahead = restoration(books.membership, books.standing, state), False
        try:
            link = books.follow(state, fetch)
        except ForkedChain:
            if note is None:
                raise
            is_ahead = True
        if note is None:
            return link, generalist
        again = len(books.standing.brought)
        generalist = go_back(books, note, state, generalist, self.transport, is_ahead)
        if is_ahead or len(books.standing.brought) < again:
            outcome.restored_to, outcome.generalist = note.round, generalist
        return books.follow(state, fetch), generalist

    def _refusal(self, number: int, losses: Judgement) -> Refusal:
        """What the fleet is told of a refused generalist: its number, and losses only if the owner opted in."""
        if not self.books.reports_loss:
            return Refusal(round=number)
        return Refusal(round=number, loss_before=losses.before, loss_after=losses.after)
