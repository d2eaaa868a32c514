"""Which documents hold most of which others, found in time that grows with the text and not with its square.

A document asks for the rarest of its runs in all others, and only what has some of those is compared in full: a text that
holds four fifths of another cannot lack all of its rarest fifth (prefix filtering, Bayardo et al. 2007).

Shapes: D documents, R runs of all of them, Q runs that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from comigs_edge.data.runs import Runs, join_runs, shared
from comigs_edge.progress import SILENT, Progress

HELD = 0.8  # share of a document's runs in another one, from which that one holds it
ASKED = 64  # runs of a document that stand for all of them: those with the smallest hashes
RAREST = 0.3  # share of these that are looked for; 0.2 would do if they stood for all without an error
POPULAR = 32  # documents from which a run tells nothing about one of them
COMMON = 0.15  # share of runs that are not popular, below which a document says nothing of its own
BATCH = 1 << 20  # runs that are looked up together
Integers = npt.NDArray[np.int32]


class Likeness(NamedTuple):
    """What `compare` found; documents by their numbers."""

    held: list[tuple[int, int, int]]  # a document, one that holds it, and how many runs they have in common
    common: set[int]  # documents of little but popular runs


def compare(texts: Sequence[Runs], progress: Progress = SILENT) -> Likeness:
    """Who holds whom; `progress` counts documents."""
    asked = [runs[:ASKED] for runs in texts]
    counts = np.array([len(runs) for runs in asked], np.int64)
    if not counts.sum():
        return Likeness([], set())
    document = np.repeat(np.arange(len(texts), dtype=np.int32), counts)  # (Q,)
    known = join_runs(asked)
    key = np.searchsorted(known, np.concatenate(asked)).astype(np.int32)  # (Q,) place in `known`
    hit_key, hit_document = _look_up(texts, known, progress)
    in_documents = np.bincount(hit_key, minlength=len(known)).astype(np.int64)
    rare = in_documents[key] <= POPULAR
    common = (counts > 0) & (np.bincount(document, rare, len(texts)) < COMMON * counts)
    if common.mean() > 0.5:
        common[:] = False  # they are all of one form, and each has something of its own
    keep = rare & (_ranks(document, in_documents[key]) < np.ceil(RAREST * counts)[document])
    asked_for = np.bincount(document[keep], minlength=len(texts))
    looked_for = np.zeros(len(known), bool)
    looked_for[key[keep]] = in_documents[key[keep]] > 1  # else only the document itself has it
    hit, keep = looked_for[hit_key], keep & looked_for[key]
    pairs, votes = _pairs(document[keep], key[keep], hit_key[hit], hit_document[hit], len(texts))
    held = []
    for pair in pairs[votes >= RAREST * asked_for[pairs // len(texts)]].tolist():
        one, other = divmod(pair, len(texts))
        in_common = shared(texts[one], texts[other])
        if in_common >= HELD * len(texts[one]):
            held.append((one, other, in_common))
    return Likeness(held, set(np.flatnonzero(common).tolist()))


def _look_up(texts: Sequence[Runs], known: Runs, progress: Progress) -> tuple[Integers, Integers]:
    """Every run of a document that is among `known`: its place there, and the document."""
    places, documents, start = [], [], 0
    bounds = np.cumsum([len(runs) for runs in texts])
    while start < len(texts):
        before = bounds[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(bounds, before + BATCH)))
        runs = np.concatenate(texts[start:end])
        place = np.searchsorted(known[:-1], runs)
        hit = np.flatnonzero(known[place] == runs)
        places.append(place[hit].astype(np.int32))
        documents.append((start + np.searchsorted(bounds[start:end] - before, hit, "right")).astype(np.int32))
        start = end
        progress(min(start, len(texts)), len(texts))
    return np.concatenate(places), np.concatenate(documents)


def _ranks(document: Integers, rarity: npt.NDArray[np.int64]) -> Integers:
    """Rank of every asked run among those of its document, the rarest first; `document` ascends."""
    order = np.lexsort((rarity, document))
    first = np.searchsorted(document, document)
    ranks = np.empty(len(document), np.int32)
    ranks[order] = np.arange(len(document)) - first
    return ranks


def _pairs(
    document: Integers, key: Integers, hit_key: Integers, hit_document: Integers, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:  # fmt: skip
    """(who asks) * D + (who has it), each once, and how many runs speak for it."""
    order = np.argsort(hit_key, kind="stable")
    hit_key, hit_document = hit_key[order], hit_document[order]
    first, last = np.searchsorted(hit_key, key, "left"), np.searchsorted(hit_key, key, "right")
    lengths = last - first
    where = np.repeat(first - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    asking, having = np.repeat(document, lengths), hit_document[where]
    other = asking != having
    return np.unique(asking[other].astype(np.int64) * count + having[other], return_counts=True)
