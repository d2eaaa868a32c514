"""The chain of generalists as a device checks it: each link signed, none left out, none changed, never backwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from comigs_edge.errors import ComigsError
from comigs_edge.fleet.membership import Membership
from comigs_edge.fleet.standing import Standing
from coordinator.protocol import keys
from coordinator.protocol.messages import Manifest, Restoration, SignedManifest, State

MAX_ANSWERS = 200  # of links that one exchange asks for: of a thousand each


Fetch = Callable[[int], list[SignedManifest]]


class ForkedChain(ComigsError):
    """The coordinator's history is not the one that this device knows."""


@dataclass(frozen=True)
class Rounds:
    """Numbers of rounds, as ranges that may be long."""

    ranges: tuple[range, ...] = ()

    def __contains__(self, number: int) -> bool:
        return any(number in each for each in self.ranges)

    def __bool__(self) -> bool:
        return any(self.ranges)


class Link(NamedTuple):
    """A verified manifest and its hash, which the next one names; and what happened since the head that a device knew."""

    manifest: Manifest
    hash: str
    hashes: dict[str, str]  # of all that are new: number -> hash
    turned_back: Rounds = Rounds()  # rounds that the fleet went back behind
    moved: frozenset[int] = frozenset()  # rounds whose updates count in the next one, because the fleet went back meanwhile


class Check:
    """Opens manifests of one fleet and base."""

    def __init__(self, fleet: str, signing_key: str, base_sha256: str) -> None:
        self._fleet, self._signing_key, self._base_sha256 = fleet, signing_key, base_sha256

    def __call__(self, signed: SignedManifest) -> Manifest:
        """The manifest; raises `ForkedChain` if the coordinator did not sign it for this fleet and base."""
        try:
            manifest = keys.open_manifest(signed, self._signing_key)
        except ValueError as error:
            raise ForkedChain(f"a manifest of the coordinator is not accepted: {error}; nothing was taken over") from error
        if (manifest.fleet, manifest.base_sha256) != (self._fleet, self._base_sha256):
            raise ForkedChain("a manifest of the coordinator is for another fleet or base; nothing was taken over")
        return manifest


def follow(newest: SignedManifest, head: int, head_hash: str, fetch: Callable[[int], list[SignedManifest]], check: Check) -> Link:
    """The newest manifest, if it continues the chain that ends with `head`; raises `ForkedChain`.

    `head` is -1 for a device that knows no generalist yet: it begins with the newest. `fetch` gives the links behind a number.
    """
    last = check(newest)
    if last.round < head:
        raise set_back(last.round, head)
    end = keys.chain_hash(newest)
    if head < 0 or (last.round == head and end == head_hash):
        return Link(last, end, {str(last.round): end})
    if last.round == head + 1 and last.previous == head_hash:
        return _link([last], end)
    number, before, links, is_new = head, None, [], True  # of the link that is wanted, its predecessor's hash; those behind head
    answers = 0
    while number <= last.round and is_new and answers < MAX_ANSWERS:
        is_new, answers = False, answers + 1
        for signed in fetch(number - 1):
            if number > last.round or check(signed).round != number:  # what was published since comes next time
                continue
            if number == head and keys.chain_hash(signed) != head_hash:
                raise _forked(number, "it is not the one that this device has")
            if before is not None and check(signed).previous != before:
                raise _forked(number, "it does not continue the one before")
            links += [check(signed)] * (number > head)
            before, number, is_new = keys.chain_hash(signed), number + 1, True
    if number <= last.round:
        raise _forked(number, "it is missing")
    if before != end:
        raise _forked(last.round, "there are two of it")
    return _link(links, end)


def _link(links: list[Manifest], end: str) -> Link:
    """The last of these new links, with what they turn back."""
    backs = [each for each in links if each.rolled_back_to is not None]
    turned_back = Rounds(tuple(range((each.rolled_back_to or 0) + 1, each.round) for each in backs))
    hashes = {str(each.round): after.previous for each, after in pairwise(links)} | {str(links[-1].round): end}
    return Link(links[-1], end, hashes, turned_back, frozenset(each.round for each in backs))


def set_back(newest: int, head: int) -> ForkedChain:
    """The error for a coordinator whose newest generalist is older than the one that this device knows."""
    shows = "no generalist" if newest < 0 else f"generalist {newest} as its newest"
    return ForkedChain(
        f"the coordinator shows {shows} and this device knows {head}: it was set back, or restored from an old backup; nothing "
        "was taken over and nothing is lost. If it was restored, its owner runs: comigs-coordinator restored"
    )


def _forked(number: int, reason: str) -> ForkedChain:
    return ForkedChain(
        f"the coordinator's generalist {number} breaks the chain ({reason}): it may have been tampered with; nothing was taken "
        "over and nothing is lost, tell whoever runs it. If it was restored from a backup, they run: comigs-coordinator restored"
    )


def restoration(member: Membership, standing: Standing, state: State) -> Restoration | None:
    """The coordinator's note that it was restored, if it is a new one."""
    try:
        note = None if state.restored is None else keys.open_restoration(state.restored, member.signing_key)
    except ValueError:
        return None
    return note if note and note.fleet == member.fleet and note.number > standing.restored else None
