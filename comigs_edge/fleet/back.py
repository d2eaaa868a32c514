"""Ways back: to a kept generalist, by hand; and to the last common one, with a coordinator that was restored from a backup."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from comigs_edge.arrays import add, subtract
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.chain import ForkedChain
from comigs_edge.fleet.folder import Membership, Standing
from comigs_edge.fleet.transport import Offline, Transport
from coordinator.protocol import keys
from coordinator.protocol.messages import Restoration, SignedManifest, State
from coordinator.protocol.wire import Arrays

if TYPE_CHECKING:
    from comigs_edge.fleet.books import Books

Fetch = Callable[[int], list[SignedManifest]]


def roll_back(books: Books, number: int | None, generalist: Arrays) -> tuple[int, Arrays]:
    """Returns to a kept generalist, the one before by default, with what was not sent yet on top.

    Raises `ComigsError` if it is not kept. What the coordinator publishes next is taken over again; the present one is not.
    """
    standing = books.standing
    kept = sorted(map(int, standing.kept))
    older = [each for each in kept if each < standing.trained_from]
    target = number if number is not None else (older[-1] if older else None)
    if target is None or target not in kept:
        wanted = "an older generalist" if number is None else f"generalist {number}"
        there = ", ".join(map(str, kept)) or "none"
        raise ComigsError(f"{wanted} is not kept on this device (kept: {there}); train on with: comigs-edge train")
    reference, unsent = books.read(target), subtract(generalist, standing.reference)
    standing.refused, standing.trained_from, standing.best, standing.reference = standing.head, target, target, reference
    books.note(add(reference, unsent))
    books.save()
    return target, add(reference, unsent)


def restoration(member: Membership, standing: Standing, state: State) -> Restoration | None:
    """The coordinator's note that it was restored, if it is a new one."""
    try:
        note = None if state.restored is None else keys.open_restoration(state.restored, member.signing_key)
    except ValueError:
        return None
    return note if note and note.fleet == member.fleet and note.number > standing.restored else None


def go_back(books: Books, note: Restoration, state: State, generalist: Arrays, transport: Transport) -> None:
    """Begins again from the last generalist that the coordinator still has: what came since is on top of it."""
    standing, number = books.standing, note.round
    links = {
        books.check(each).round: each
        for each in transport.manifests(-1 if number < 0 else min(number, standing.trained_from) - 1)
    }
    if number >= 0 and (number not in links or keys.chain_hash(links[number]) != note.manifest_hash):
        raise ForkedChain(
            f"the coordinator does not show the generalist {number} that it was restored to; nothing was taken over"
        )
    lost = books.brought(lambda at, update_id: at > number and update_id not in state.counted)
    start = links.get(standing.trained_from)
    is_common = start is not None and books.check(start).sha256 == standing.kept.get(str(standing.trained_from))
    standing.kept = {at: sha256 for at, sha256 in standing.kept.items() if int(at) <= number}
    if standing.trained_from > number or not is_common:
        standing.reference = _common(books, note, state, links, lost, transport)
    else:
        standing.reference = subtract(standing.reference, lost)
    standing.head, standing.head_hash, standing.restored = number, note.manifest_hash, note.number
    standing.refused, standing.best = min(standing.refused, number), min(standing.best, number)
    standing.brought = {each: at for each, at in standing.brought.items() if at <= number or each in state.counted}
    standing.unsent_tokens = max(1, standing.unsent_tokens)
    books.note(generalist)
    books.save()
    update = books.folder.outbox()
    if update is not None and update.trained_from > number:  # what is in it is on top
        books.folder.empty_outbox()


def _common(
    books: Books, note: Restoration, state: State, links: dict[int, SignedManifest], lost: Arrays,
    transport: Transport,
) -> Arrays:  # fmt: skip
    """What the coordinator has of this device's generalist, from the last common one on."""
    standing = books.standing
    still = books.brought(lambda at, update_id: at > note.round and update_id in state.counted)
    if note.round < 0:
        standing.trained_from, standing.acknowledged = -1, ""
        return books.initial()
    try:
        manifest = books.check(links[note.round])
        books.bring(manifest, transport)
        standing.trained_from = note.round
        return add(books.read(note.round), still)
    except Offline:
        raise
    except ComigsError:  # it is not served any more: what this device brought since goes on top of the next one
        standing.trained_from = -1
        return subtract(standing.reference, lost)
