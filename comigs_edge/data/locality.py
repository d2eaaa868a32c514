"""Local text: in which split each document of it is, beside shared text of which nothing may depend on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from comigs_edge.data.arrangement import SPLITS, Entry, Split, arrange
from comigs_edge.data.runs import NO_RUNS, Runs, join_runs


def arrange_local(
    entries: Sequence[Entry], shared: Sequence[Entry], training: float, validation: float,
    gone: Sequence[Mapping[Split, Runs]], salt: str = "",
) -> None:  # fmt: skip
    """As `arrange`, of documents that are local; `shared` are arranged already, and stay as they are.

    What shared text has learned is as if it were `gone`: it keeps its split, and is neither chosen nor tested on. Few documents
    are all training text: the other splits are there in shared text, without which no training learns anything.
    """
    known = {
        split: join_runs(
            [
                *(each.runs for each in shared if each.split == split and (each.seen or each.left_out is None)),
                *(each.get(split, NO_RUNS) for each in gone),
            ]
        )
        for split in SPLITS
    }
    if sum(entry.left_out != "unanswered" for entry in entries) < len(SPLITS):
        for entry in entries:
            entry.split = entry.split or "training"
    arrange(entries, training, validation, gone=known, salt=salt)
    is_learned = any(each.seen for each in shared)
    for entry in entries:
        entry.seen = entry.seen or (is_learned and entry.left_out is None)
