"""Whether a device has learned something that its fleet has not received; read from files, without the network."""

from __future__ import annotations

from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.membership import Membership
from comigs_edge.fleet.standing import Sealed, Standing
from comigs_edge.home.folder import Home
from comigs_edge.home.marks import Mark, read_mark
from comigs_edge.home.versions import read_manifest, versions
from comigs_edge.training import checkpoint


def present_mark(member: Membership, standing: Standing, update: Sealed | None) -> str:
    """Names what was exchanged and sealed so far; a checkpoint keeps it."""
    return f"{member.joined}/{standing.number}/{update.id if update else ''}"


def was_in_a_fleet(member: Membership, word: str | None) -> bool:
    """Whether a generalist that was kept with this mark has been exchanged, in this fleet or in an earlier one."""
    return word is not None and not word.startswith(f"{member.joined}/0/")


def unsent_tokens(member: Membership, standing: Standing, kept: Mark) -> int:
    """Tokens that a generalist which was kept with this mark brings with its next update."""
    if kept.tokens is None:
        return standing.unsent_tokens
    return 0 if was_in_a_fleet(member, kept.word) and not standing.number else kept.tokens


def waits(home: Home, folder: FleetFolder, member: Membership, standing: Standing, latest: checkpoint.Latest) -> bool:
    """Whether the next exchange has something to bring, by the `latest` state of the training too."""
    update = folder.outbox()
    if update is not None or standing.dropped:
        return True
    kept = _kept(home, latest)
    if standing.number and kept.word != present_mark(member, standing, update):
        return standing.unsent_tokens > 0 or folder.alone.has_begun(kept)
    return unsent_tokens(member, standing, kept) > 0


def _kept(home: Home, latest: checkpoint.Latest) -> Mark:
    """Of an interrupted training or else of the newest adapters; of nothing that was trained: no tokens."""
    state, made = latest.interrupted, versions(home.adapters)
    if state is not None:
        return read_mark(state.progress)
    return read_mark(read_manifest(home.adapters, made[-1])) if made else Mark()
