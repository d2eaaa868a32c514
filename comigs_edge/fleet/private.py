"""The transport of a private fleet: updates go into windows, of which the coordinator learns the sum only.

At each exchange a device gives what its windows want of it by then: keys and shares of the next one, the masked update of the
present one, and for that a confirmation and an answer later on. It waits for none of them; what a window does not take comes with
the next. Everything that the coordinator says is checked before anything is given for it, and a window that does not fit is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from comigs_edge.arrays import digest
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.books import Books
from comigs_edge.fleet.client import RemoteRefused
from comigs_edge.fleet.exchange import Exchange
from comigs_edge.fleet.held import Held, HeldWindows
from comigs_edge.fleet.http import HTTPTransport
from comigs_edge.fleet.roster import check_roster
from comigs_edge.fleet.standing import Sealed
from comigs_edge.fleet.transport import Leave, News
from comigs_edge.progress import SILENT, Progress
from coordinator.protocol import keys, messages, norms
from coordinator.protocol.compress import MASKED
from coordinator.protocol.messages import Message, State
from coordinator.protocol.private import masks, steps
from coordinator.protocol.private.cohort import Cohort, Distrust
from coordinator.protocol.private.messages import Masked, Window
from coordinator.protocol.text import printable

WINDOWS, STEPS = 2, 8  # that are looked at in one exchange: what a coordinator can make a device do is bounded
WINDOW_ID = "[0-9a-f]{32}"
PASSED = ("not_wanted", "no_window", "incomplete", "already_counted", "wrong_digest")  # refusals: the window went on, or is over


class PrivateTransport(HTTPTransport):
    """One coordinator, whose fleet is private or may become so; `books` are this device's."""

    def __init__(self, address: str, pin: bytes, key: Ed25519PrivateKey, device: str, patience: float, books: Books) -> None:
        super().__init__(address, pin, key, device, patience)
        self._set_books(books, device)

    def _set_books(self, books: Books, device: str) -> None:
        self._books, self._held, self._id = books, HeldWindows(books.folder.windows), device

    def exchange(self, update: Sealed | None, leaves: Leave, progress: Progress = SILENT) -> News:
        """Brings the update as the fleet takes it: in a window, unless it is none that is private."""
        try:
            state = self.state()
        except RemoteRefused as error:
            if error.code == "revoked":
                self._held.leave_all()  # nothing of it is asked for any more, and with the seed a masked update can be read
            raise
        is_private = state.settings.update_format == MASKED
        if not is_private:
            self._held.leave_all()
        if not is_private or (update is not None and update.trained_from < 0):  # an initial generalist says nothing of any text
            return self.bring(update, state, leaves, progress)
        self._held.keep([note.window for note in state.windows])
        kept_out = self._kept_out(state)
        if update is not None and not (update.id in state.counted or self._held.has(update.id)) and (flaw := self._flaw(update)):
            return News(state=state, kept_out=kept_out, is_rejected=True, reason=flaw)
        settings, reason = state.settings, ""
        for _ in range(STEPS if kept_out is None else 0):
            self._held.keep([note.window for note in state.windows])
            try:
                after = self._step(state, update, lambda size: leaves(size, settings), progress)
            except RemoteRefused as error:
                if error.code not in (*PASSED, "disk_full"):
                    raise
                state, after, reason = self.state(), None, str(error) if error.code == "disk_full" else ""
            if after is None:
                break
            state = after
        self._held.keep([note.window for note in state.windows])
        is_over = update is not None and self._books.folder.was_tried and not self._held.has(update.id)
        if update is None or not is_over or update.id in state.counted:
            return News(state=state, kept_out=kept_out, reason=reason)
        return News(state=state, kept_out=kept_out, is_rejected=True, reason=self._flaw(update))

    def _kept_out(self, state: State) -> str | None:
        """Why this device gives nothing to any private window now, and what to do; None: it may take part."""
        own = keys.public_text(self._key)
        if not state.is_listed:
            return (
                "this device is not in the roster that its fleet's owner signed, so no private window takes what it learned; its "
                f"key, which the owner signs with the others (comigs-coordinator roster sign), is {own}"
            )
        names = [note.window for note in state.windows if re.fullmatch(WINDOW_ID, note.window)]
        if not (self._books.membership.roster_key and names):
            return None
        try:
            self._check_roster(self._ask(Window, "GET", f"/v1/windows/{names[-1]}"), [own])
        except Distrust as error:
            return (
                f"this device takes part in no private window: {error}; what it learned is kept until the fleet's owner shows "
                "the newest one: comigs-coordinator roster use ROSTER"
            )
        except RemoteRefused as error:
            if error.code not in PASSED:
                raise
        return None

    def _flaw(self, update: Sealed) -> str:
        """Why an update is in no window as it is; empty where nothing is wrong with it."""
        if self._held.was_answered(digest(update.packed)):
            return "a sum with it was opened already, and it does not count; in another sum the two would show more than either"
        numbers = update.packed.values() if update.update_format == "float16" else ()
        if not all((np.abs(array) <= masks.MOST_ABSOLUTE).all() for array in numbers):
            return f"it has numbers that are none, or are beyond {masks.MOST_ABSOLUTE:g}"
        return ""

    def _step(self, state: State, update: Sealed | None, leaves: Callable[[int], bool], progress: Progress) -> State | None:
        """Gives what one window wants; returns where the fleet stands then, None where there is nothing to give now."""
        for note in state.windows[:WINDOWS]:
            if not re.fullmatch(WINDOW_ID, note.window) or not note.wants:
                continue
            held = self._held.find(note.window)
            if held is None and note.wants == "keys" and not self._held.is_full and self._has_news(state):
                return self._give_keys(note.window)
            if held is None or not (held.seed or held.answer):
                continue
            try:
                after = self._give_more(held, note.wants, state, update, leaves, progress)
            except Distrust as error:
                self._held.leave(held)
                self._note(
                    f"this device left a private window: {error}; it gives no share of it, and what it learned comes with another"
                )
                continue
            if after is not None:
                return after
        return None

    def _has_news(self, state: State) -> bool:
        """Whether this device has learned more than what it brings, or will bring, to a window that it takes part in."""
        standing, folder, sent = self._books.standing, self._books.folder, self._books.folder.outbox()
        is_spent = sent is not None and (sent.id in state.counted or self._held.has(sent.id) or folder.refused() is not None)
        brings = sent.tokens if sent is not None and is_spent else 0
        return standing.trained_from >= 0 and standing.unsent_tokens > brings and not self._held.is_waiting

    def _give(self, held: Held, stage: str, message: Message) -> State:
        return self._ask(State, "POST", f"/v1/windows/{held.window}/{stage}", messages.encode(message))

    def _note(self, sentence: str) -> None:
        if sentence not in self._books.folder.notes:
            self._books.folder.notes.append(sentence)

    def _give_keys(self, name: str) -> State:
        held = self._held.begin(name)
        made = steps.make_keys(bytes.fromhex(held.seed), held.window, self._key)
        held.fix(keys=(made.keys, made.signature))
        self._held.save(held)
        return self._give(held, "keys", made)

    def _give_more(
        self, held: Held, wants: str, state: State, update: Sealed | None, leaves: Callable[[int], bool], progress: Progress
    ) -> State | None:
        """What comes after the keys; raises `Distrust` where the window is not what this device has taken part in."""
        if wants == "keys":  # they did not arrive
            return self._give(held, "keys", held.own_keys)
        if wants == "answers" and held.answer:  # it may have arrived: it goes again as it is, whatever is said now
            return self._bring_answer(held)
        if not held.seed or (wants == "masked" and (update is None or update.id in state.counted)):
            return None  # whoever has answered has no seed left to mask anything with
        window = self._ask(Window, "GET", f"/v1/windows/{held.window}")
        if window.stage != wants:
            return None
        if wants == "shares":
            return self._give_shares(held, window)
        cohort = held.read_cohort(self._books.membership.signing_key)
        self._check_roster(window, (each.public_key for each in cohort.devices.values()))  # a newer one may have come
        if wants == "masked":
            return self._give_masked(held, cohort, window, update, leaves, progress)
        return self._give_sign(held, cohort, window)

    def _check_roster(self, window: Window, public_keys: Iterable[str]) -> None:
        check_roster(self._books.folder, self._books.membership, window.roster, public_keys)

    def _give_shares(self, held: Held, window: Window) -> State:
        cohort_keys = sorted([each.keys, each.signature] for each in window.keys)
        held.fix(terms=(window.terms.terms, window.terms.signature), cohort=cohort_keys)
        cohort = held.read_cohort(self._books.membership.signing_key)
        if (cohort.terms.fleet, cohort.terms.window) != (self._books.membership.fleet, held.window):
            raise Distrust("its terms are for another fleet or window")
        if held.own_keys not in window.keys:
            raise Distrust("it does not have the keys of this device")
        self._check_roster(window, (each.public_key for each in cohort.devices.values()))
        self._held.save(held)
        return self._give(held, "shares", steps.make_shares(bytes.fromhex(held.seed), cohort, self._id))

    def _give_masked(
        self, held: Held, cohort: Cohort, window: Window, update: Sealed | None, leaves: Callable[[int], bool], progress: Progress
    ) -> State | None:
        if update is None or update.update_format != "float16" or window.head != self._books.standing.head_hash:
            return None  # the newest generalist comes first: masks are for those that know the same one
        content = digest(update.packed)
        if self._held.has(update.id, but=held.window):
            raise Distrust("it asks for an update that another window has, which is not over")
        if self._held.was_answered(content):
            return None  # that window is over: the next update may come into this one
        cohort.check_step(window.shared, cohort.devices, self._id)
        numbers = masks.to_ring(update.packed)
        length = norms.l2_norm(array.astype("float32") for array in update.packed.values())
        if numbers.size != cohort.terms.numbers or length > cohort.terms.bound:
            raise Distrust(f"it takes {cohort.terms.numbers:,} numbers with a norm up to {cohort.terms.bound:g}")
        held.fix(update_id=update.id, digest=content, shared=window.shared, head=window.head, boxes=window.boxes)
        was_tried = leaves(numbers.nbytes)
        self._held.save(held)  # from here on nothing else is masked in this window
        steps.mask(numbers, bytes.fromhex(held.seed), cohort, self._id, held.shared, held.head)
        sha256 = self.upload(numbers.astype("<u4").tobytes(), progress, is_new=not was_tried)
        return self._give(held, "masked", Masked(sha256=sha256, update_id=update.id))

    def _give_sign(self, held: Held, cohort: Cohort, window: Window) -> State:
        """A confirmation of the senders; or, where enough confirm them, the shares that open their sum."""
        if not held.update_id:
            raise Distrust("it counts an update that this device has not sent")
        cohort.check_step(window.senders, held.shared, self._id)
        held.fix(senders=sorted(window.senders))
        what = steps.confirmed(cohort, held.shared, held.senders, held.head)
        if window.stage == "confirmations":
            self._held.save(held)
            return self._give(held, "confirmations", steps.confirm(what, self._key))
        seed = bytes.fromhex(held.seed)
        made = messages.encode(steps.answer(seed, cohort, self._id, what, held.boxes, window.confirmations)).decode()
        self._held.note_answered(held)
        held.seed, held.boxes, held.answer = "", {}, made
        self._held.save(held)  # from here on nothing else is answered in this window
        return self._bring_answer(held)

    def _bring_answer(self, held: Held) -> State:
        return self._ask(State, "POST", f"/v1/windows/{held.window}/answers", held.answer.encode())


def connect(books: Books, patience: float) -> Exchange:
    """The books' way to their fleet; `patience` is how long (seconds) a call is retried. Raises `ComigsError`."""
    member, folder = books.membership, books.folder
    if not member.address:
        raise ComigsError("this device reaches its fleet through NVIDIA FLARE only; train with: comigs-edge flare run KIT")
    if keys.device_id(keys.public_text(key := folder.key())) != member.device:
        raise ComigsError(
            f"{folder.key_file} is not the key of {printable(member.name)}, which membership.json names; put back the one of the "
            "two that is another device's, or join again: comigs-edge join LINK"
        )
    transport = PrivateTransport(member.address, bytes.fromhex(member.pin), key, member.device, patience, books)
    return Exchange(books, transport)
