"""A device in its fleet: brings what its generalist has learned, takes over what the others' have, waits for nobody.

An update is the device's generalist less its reference: what the coordinator has received of it so far. When the coordinator
acknowledges an update the reference moves by just what was sent, so that

  - nothing is counted twice: a retry is the same update, and what was acknowledged is in the reference;
  - nothing is lost: what rounding took away, and what was learned meanwhile, is in the next update (error feedback);
  - a new generalist is taken over with what was not sent yet on top of it.

Without a connection the update goes to the outbox, and training goes on. It is brought later as what it is, a change of an
older generalist, and the coordinator weights it by 1 / sqrt(1 + generalists since). One that is more than the coordinator's
`max_staleness` (20) behind is not sent as such: its progress is put on top of the newest generalist and comes with the next
update.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable

import numpy as np

from comigs_edge.arrays import less, plus, zeros
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.chain import Check, follow
from comigs_edge.fleet.client import Offline, Remote, RemoteRefused
from comigs_edge.fleet.folder import FleetFolder, Sealed
from comigs_edge.fleet.outcome import Exchange, Judge
from comigs_edge.progress import SILENT, Progress
from coordinator.protocol import compress, rounds, wire
from coordinator.protocol.messages import Commit, Manifest, Receipt, Refusal, State
from coordinator.protocol.wire import Arrays

# Refusals after which the update cannot be sent as it is: its progress stays in the generalist and comes with the next one.
UNSEND = ("too_stale", "wrong_generalist", "bad_update", "too_large", "wrong_digest")
PAUSE, MAX_PAUSE = 5.0, 1800.0  # seconds before a coordinator that is away is tried again: twice as long each time


class Federation:
    """The device's side of the rounds. `gate`: how much worse (nats a token) a new generalist may make the validation text."""

    def __init__(
        self, folder: FleetFolder, remote: Remote, shapes: dict[str, tuple[int, ...]], base_sha256: str, gate: float,
        reports_loss: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._folder, self._remote, self._shapes, self._gate = folder, remote, shapes, gate
        self._reports_loss, self._clock = reports_loss, clock
        self._not_before, self._failures = 0.0, 0
        self.membership = folder.membership()
        self.standing = folder.standing()
        self._check = Check(self.membership.fleet, self.membership.signing_key, base_sha256)
        if not self.standing.reference:
            self.standing.reference = zeros(shapes)

    # A training's begin -------------------------------------------------------------------------------------------

    @property
    def mark(self) -> str:
        """Names what was exchanged and sealed so far; a checkpoint keeps it."""
        sealed = self._folder.outbox()
        return f"{self.membership.joined}/{self.standing.number}/{sealed.id if sealed else ''}"

    def begin(self, generalist: Arrays, mark: str | None) -> Arrays:
        """The generalist to train on with; `mark` is the one that was kept with `generalist`, in a checkpoint or with adapters.

        Both may be older than what was exchanged or sealed since: then the generalist as it was sent is gone on with, so that
        no step is sent twice.
        """
        if self.standing.number == 0 or mark == self.mark:
            return generalist
        return plus(self.standing.reference, self._waiting())

    def frozen(self) -> set[str]:
        """The generalist's tensors that this round's averaging does not train."""
        trained = rounds.trained_names(self._shapes, self.membership.averaging, self.standing.trained_from + 1)
        return self._shapes.keys() - set(trained)

    # Exchange -----------------------------------------------------------------------------------------------------

    def exchange(
        self,
        generalist: Arrays,
        tokens: int,
        judge: Judge | None,
        loss: float | None = None,
        progress: Progress = SILENT,
    ) -> Exchange:
        """Brings what was learned on `tokens` tokens, takes over what is new; never raises for a coordinator that is away.

        `loss` is the validation loss, sent by devices that opted in. Without `judge` a new generalist is taken over unseen.
        """
        found = Exchange()
        self.standing.unsent_tokens += tokens
        try:
            state = self._deliver(self._state(), found, progress)
            self._pull(state, generalist, judge, found, progress)
            generalist = generalist if found.generalist is None else found.generalist
            if (self.standing.unsent_tokens or state.newest is None) and not state.has_contributed:
                self._seal(generalist, loss)
                state = self._deliver(state, found, progress)
            self._failures = 0
            self._not_before = self._clock() + (state.next_poll_seconds if state.has_contributed else 0.0)
        except Offline as error:
            found.offline, self._failures = str(error), self._failures + 1
            self._not_before = self._clock() + random.uniform(0, min(MAX_PAUSE, PAUSE * 2**self._failures))
            if self.standing.unsent_tokens:
                self._seal(generalist, loss)
        found.waits = self._folder.outbox() is not None
        return found

    def is_due(self) -> bool:
        """Whether to speak to the coordinator: not before it asked to, and ever more seldom while it is away."""
        return self._clock() >= self._not_before

    def bring_waiting(self, found: Exchange, progress: Progress = SILENT) -> None:
        """Only what waits in the outbox is brought."""
        try:
            self._deliver(self._state(), found, progress)
        except Offline as error:
            found.offline = str(error)
        found.waits = self._folder.outbox() is not None

    def seal_rest(self, generalist: Arrays) -> bool:
        """At a training's end: what could not be sent in this round goes to the outbox. Returns whether something waits."""
        if self.standing.unsent_tokens and self._folder.outbox() is None:
            self._seal(generalist, None)
        return self._folder.outbox() is not None

    def _state(self) -> State:
        state = self._remote.state()
        self.membership = self.membership.with_settings(state.settings)
        self._folder.save_membership(self.membership)
        return state

    # Bringing -----------------------------------------------------------------------------------------------------

    def preview(self, generalist: Arrays | None) -> Sealed:
        """The update as it would be sent now; with None: what its tensors would look like."""
        return self._folder.outbox() or self._update(zeros(self._shapes) if generalist is None else generalist, None)

    def _update(self, generalist: Arrays, loss: float | None) -> Sealed:
        standing, membership = self.standing, self.membership
        format_name = compress.update_format(membership.update_format, standing.trained_from)
        names = rounds.trained_names(self._shapes, membership.averaging, standing.trained_from + 1)
        change = {name: generalist[name] - standing.reference[name] for name in names}
        return Sealed(
            secrets.token_hex(8), standing.trained_from, standing.unsent_tokens, format_name, membership.averaging,
            loss if self._reports_loss else None, compress.pack(change, format_name),
        )  # fmt: skip

    def _seal(self, generalist: Arrays, loss: float | None) -> None:
        """Puts what was not sent into the outbox, unless an update is there that may have arrived: that one goes first."""
        if not self._folder.was_tried:
            self._folder.seal(self._update(generalist, loss))

    def _deliver(self, state: State, found: Exchange, progress: Progress) -> State:
        """Brings the outbox, unless this round has this device's update already; returns the state after it."""
        sealed = self._folder.outbox()
        if sealed is not None and sealed.id == self.standing.acknowledged:  # it had arrived, and then the power went
            self._folder.empty_outbox()
            sealed = None
        if sealed is None or state.has_contributed:
            return state
        try:
            receipt = self._commit(sealed, state, found, progress)
        except RemoteRefused as error:
            if error.code in UNSEND:
                self._folder.empty_outbox()
            elif error.code not in ("stale_round", "already_counted", "disk_full", "incomplete"):
                raise
            return self._state()
        self._acknowledge(sealed)
        found.receipts.append(receipt)
        return self._state()

    def _commit(self, sealed: Sealed, state: State, found: Exchange, progress: Progress) -> Receipt:
        data = wire.encode(sealed.packed)
        sha256 = self._remote.upload(data, progress)
        found.bytes_sent += len(data)
        wish = Commit(
            sha256=sha256, trained_from=sealed.trained_from, tokens=sealed.tokens, expected_round=state.open_round,
            validation_loss=sealed.validation_loss,
        )  # fmt: skip
        self._folder.mark_tried()
        try:
            return self._remote.commit(wish)
        except RemoteRefused as error:
            if error.code != "stale_round":
                raise
            wish.expected_round = self._state().open_round  # a round closed while the update was on its way
            return self._remote.commit(wish)

    def _acknowledge(self, sealed: Sealed) -> None:
        """The reference moves by what was sent."""
        for name, change in self._decoded(sealed).items():
            self.standing.reference[name] = self.standing.reference[name] + change
        self.standing.acknowledged = sealed.id
        self.standing.unsent_tokens = max(0, self.standing.unsent_tokens - sealed.tokens)
        self._moved()
        self._folder.empty_outbox()

    def _decoded(self, sealed: Sealed) -> Arrays:
        names = rounds.trained_names(self._shapes, sealed.averaging, sealed.trained_from + 1)
        return compress.unpack(sealed.packed, {name: self._shapes[name] for name in names}, sealed.update_format)

    def _waiting(self) -> Arrays:
        sealed = self._folder.outbox()
        return {} if sealed is None else self._decoded(sealed)

    # Taking over --------------------------------------------------------------------------------------------------

    def _pull(
        self, state: State, generalist: Arrays, judge: Judge | None, found: Exchange, progress: Progress
    ) -> None:  # fmt: skip
        if state.newest is None:
            return
        standing = self.standing
        manifest, head_hash = follow(
            state.newest, standing.head, standing.head_hash, self._remote.manifests, self._check
        )
        if manifest.round in (standing.trained_from, standing.refused):
            return
        arrays = self._brought(manifest, found, progress)
        standing.head, standing.head_hash = manifest.round, head_hash
        # What was not sent yet goes on top; a device that has sent nothing starts from the fleet's generalist.
        unsent = less(generalist, standing.reference) if standing.number else {}
        candidate = plus(arrays, unsent)
        if judge is not None and standing.trained_from >= 0:
            found.judgement = judge(plus(self._before(), unsent), candidate)
            if found.judgement.after > found.judgement.before + self._gate:
                self._refuse(manifest, found)
                return
        standing.trained_from, standing.reference = manifest.round, arrays
        self._moved()
        found.generalist, found.taken_over = candidate, manifest.round

    def _before(self) -> Arrays:
        """The generalist that was gone on from; where it is not kept any more, what the coordinator has of this device's."""
        kept = str(self.standing.trained_from) in self.standing.kept
        return self._read(self.standing.trained_from) if kept else self.standing.reference

    def _brought(self, manifest: Manifest, found: Exchange, progress: Progress) -> Arrays:
        path = self._folder.generalist_path(manifest.round)
        if self.standing.kept.get(str(manifest.round)) != manifest.sha256 or not path.exists():
            self._remote.download(manifest, path, progress)
            found.bytes_received += manifest.size
            self._folder.keep(self.standing, manifest.round, manifest.sha256)
        return self._read(manifest.round)

    def _read(self, number: int) -> Arrays:
        table = compress.table(self._shapes, "float32")
        path = self._folder.generalist_path(number)
        return {
            name: np.array(array) for name, array in wire.decode_expected(path.read_bytes(), table, str(path)).items()
        }

    def _refuse(self, manifest: Manifest, found: Exchange) -> None:
        assert found.judgement is not None
        self.standing.refused, found.refused = manifest.round, manifest.round
        self._moved()
        before, after = found.judgement
        try:
            self._remote.refuse(Refusal(round=manifest.round, loss_before=before, loss_after=after))
        except RemoteRefused:
            pass  # another one is the newest already

    # Returning ----------------------------------------------------------------------------------------------------

    def roll_back(self, number: int | None) -> tuple[int, Arrays]:
        """Returns to a kept generalist, the one before by default; raises `ComigsError` if it is not kept.

        What the coordinator publishes next is taken over again; the present one is not.
        """
        standing = self.standing
        kept = sorted(int(each) for each in standing.kept if int(each) < standing.trained_from or int(each) == number)
        target = number if number is not None else (kept[-1] if kept else None)
        if target is None or target not in kept:
            there = ", ".join(map(str, sorted(map(int, standing.kept)))) or "none"
            wanted = "an older generalist" if number is None else f"generalist {number}"
            raise ComigsError(f"{wanted} is not kept on this device (kept: {there}); train on with: comigs-edge train")
        arrays = self._read(target)
        self._folder.empty_outbox()
        standing.refused, standing.trained_from, standing.reference = standing.head, target, dict(arrays)
        self._moved()
        return target, arrays

    def _moved(self) -> None:
        self.standing.number += 1
        self._folder.save_standing(self.standing)
