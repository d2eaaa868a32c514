"""Ways back: to a kept generalist, by hand; and to the last common one, with a coordinator that was restored from a backup."""

from __future__ import annotations

from collections.abc import Sequence

from comigs_edge.arrays import add, norm, subtract
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.book_files import KEPT_UPDATES
from comigs_edge.fleet.books import Books
from comigs_edge.fleet.chain import ForkedChain, restoration
from comigs_edge.fleet.transport import Offline, Transport
from coordinator.protocol import keys
from coordinator.protocol.messages import Restoration, SignedManifest, State
from coordinator.protocol.wire import Arrays

MAX_LINKS = 1000  # that a coordinator shows at once


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
    try:
        reference, unsent = books.kept.read(target), subtract(generalist, standing.reference)
    except OSError as error:
        raise ComigsError(f"generalist {target} is gone from this device; train on with: comigs-edge train") from error
    standing.refused, standing.trained_from, standing.best, standing.reference = standing.head, target, target, reference
    books.note(add(reference, unsent))
    books.save()
    return target, add(reference, unsent)


def go_back(books: Books, note: Restoration, state: State, generalist: Arrays, transport: Transport, is_ahead: bool) -> Arrays:
    """Goes on with a restored coordinator: what this device brought and it does not have is on top again; returns the generalist.

    A device that `is_ahead` begins again from the last generalist that both have. What the others brought since is theirs to
    bring again: otherwise it would count once for each device. Only where this device does not know any more what it brought
    itself, because that is too long ago, all that came since is on top.
    """
    standing, links = books.standing, _links(books, note, transport) if note.round >= 0 else {}
    books.write()
    hashes = {at: keys.chain_hash(each) for at, each in links.items()}
    common = max((int(at) for at, known in standing.heads.items() if hashes.get(int(at)) == known), default=-1)
    reaches = len(standing.brought) < KEPT_UPDATES or min(standing.brought.values()) <= common
    is_known = is_ahead and common >= 0 and reaches
    begin = common if is_known else note.round
    lost = books.brought.forget(lambda at, each: at > begin and each not in state.counted)
    unsent = subtract(generalist, standing.reference)
    standing.reference = subtract(standing.reference, lost)
    if is_ahead:
        _move_back(books, begin, hashes.get(begin, ""))
        if standing.trained_from > begin and _begin_again(books, begin, note, links, transport):
            if is_known:
                generalist = add(add(standing.reference, unsent), lost)
            elif norm(subtract(generalist, standing.reference)):
                standing.unsent_tokens = max(1, standing.unsent_tokens)
    standing.restored = note.number
    books.note(generalist)
    books.save()
    return generalist


def take_back_lost(books: Books, before: Sequence[str], state: State) -> None:
    """Updates that counted when the fleet was heard `before`, and do not now, are on top again: they come once more.

    Its coordinator was put back from a copy and does not say so. Ids come in order, and the oldest fall out: what is behind the
    last that both lists have is lost.
    """
    standing = books.standing
    if restoration(books.membership, standing, state) is not None:
        return  # which is followed in order
    common = [at for at, each in enumerate(before) if each in state.counted]
    lost = set(before[common[-1] + 1 :] if common else before)
    if lost.isdisjoint(standing.brought):
        return
    generalist = add(standing.reference, standing.on_top or {})
    standing.reference = subtract(standing.reference, books.brought.forget(lambda _, each: each in lost))
    books.note(generalist)
    books.save()


def _move_back(books: Books, begin: int, manifest_hash: str) -> None:
    """The chain ends with this manifest again; what is known of later ones is of another one."""
    standing, update = books.standing, books.folder.outbox()
    standing.head, standing.head_hash = begin, manifest_hash
    standing.kept = {at: sha256 for at, sha256 in standing.kept.items() if int(at) <= begin}
    standing.heads = {at: known for at, known in standing.heads.items() if int(at) <= begin}
    standing.refused, standing.best = min(standing.refused, begin), min(standing.best, begin)
    if update is not None and update.trained_from > begin and not books.folder.was_tried:  # what is in it is on top
        books.folder.empty_outbox()


def _links(books: Books, note: Restoration, transport: Transport) -> dict[int, SignedManifest]:
    """The coordinator's chain up to the note's generalist and on; raises `ForkedChain` if the note is not of it."""
    oldest = min([note.round, *map(int, books.standing.heads)])
    links = {books.check(each).round: each for each in transport.manifests(max(oldest, note.round - MAX_LINKS + 1) - 1)}
    if note.round not in links or keys.chain_hash(links[note.round]) != note.manifest_hash:
        raise ForkedChain(
            f"the coordinator does not show the generalist {note.round} that it was restored to; nothing was taken over"
        )
    return links


def _begin_again(books: Books, begin: int, note: Restoration, links: dict[int, SignedManifest], transport: Transport) -> bool:
    """Makes the reference a generalist of the coordinator's, with what it has of this device's since; returns success."""
    standing = books.standing
    if note.round < 0:
        standing.trained_from, standing.acknowledged, standing.reference = -1, "", books.initial()
        return True
    for number in (begin, note.round):
        try:
            books.kept.bring(books.check(links[number]), transport)
            standing.trained_from = number
            standing.reference = add(books.kept.read(number), books.brought.sum(lambda at, _: at > number))  # noqa: B023
            return True
        except Offline:
            raise
        except ComigsError:
            continue
    standing.trained_from = -1  # neither is served any more: what this device brought goes on top of the next one
    return False
