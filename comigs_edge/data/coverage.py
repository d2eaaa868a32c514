"""How much of a document stands in several others together: windows over one text, records that share most of theirs.

Runs that many documents have are of their form; what is left is a document's own. Times are those of sorting all runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from comigs_edge.data.likeness import COMMON, POPULAR
from comigs_edge.data.runs import NO_RUNS, Runs, index_runs, shared

FEW = (5, 0.1)  # documents, or share of all, up to which a run is their own; never more than `POPULAR`
COVERED = 0.5  # share of a document's own runs in others, from which it was learned with them
OVERLAP = 1 / 3  # share of the longer one's own runs, from which two documents belong together


def find_own(texts: Sequence[Runs]) -> list[Runs]:
    """The runs of each text that few others have; none where that is hardly anything of it."""
    runs, counts = np.unique(np.concatenate([*texts, NO_RUNS]), return_counts=True)
    popular = runs[counts > min(POPULAR, max(FEW[0], FEW[1] * len(texts)))]
    own = [np.setdiff1d(text, popular, assume_unique=True) if shared(text, popular) else text for text in texts]
    return [rest if len(rest) >= COMMON * len(text) else rest[:0] for rest, text in zip(own, texts, strict=True)]


def is_covered(own: Runs, others: Runs) -> bool:
    """Whether a document with these own runs stands in texts that have the runs `others`."""
    return len(own) > 0 and shared(own, others) >= COVERED * len(own)


def find_overlaps(own: Sequence[Runs]) -> list[tuple[int, int]]:
    """Pairs of texts that overlap, most first; of several with the same run neighbours are paired."""
    runs, owners = index_runs(own)
    same = np.flatnonzero(runs[1:] == runs[:-1])
    pairs, votes = np.unique(owners[same].astype(np.int64) * len(own) + owners[same + 1], return_counts=True)
    found = [(int(vote), *divmod(int(pair), len(own))) for pair, vote in zip(pairs, votes, strict=True)]
    found = [(vote, one, other) for vote, one, other in found if vote >= OVERLAP * max(len(own[one]), len(own[other]))]
    return [(one, other) for _, one, other in sorted(found, key=lambda each: (-each[0], each[1:]))]
