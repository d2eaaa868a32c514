"""Passages of a text that stand in others word by word: a disclaimer below every mail, a licence, a quotation.

They are read, and not scored where they were learned: a figure for them would be one for text that is known by heart.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator

import numpy as np

from comigs_edge.data.document import Document
from comigs_edge.data.runs import ALONE, LENGTH, Hashes, Runs, are_among, hash_words, runs_in_order, words

PASSAGE = 32  # words in a row; in fewer, texts agree by chance
_UNIT = re.compile(rf"[{ALONE}]|[^\s{ALONE}]+")  # what has no word's end inside


def find_passages(text: str, known: Runs) -> Iterator[tuple[int, int]]:
    """Start and end, in characters, of each passage of at least `PASSAGE` words of which all runs are among the known ones."""
    units = list(_UNIT.finditer(text))
    hashes = [_hashes(unit.group()) for unit in units]
    owners = np.repeat(np.arange(len(units)), [len(each) for each in hashes])  # of words
    runs = runs_in_order(np.concatenate([*hashes, np.array([], np.uint64)]))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], are_among(runs, known), [False]]))).tolist()
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        last = end - 1 + LENGTH - 1  # the last word of the last run
        if last - first + 1 >= PASSAGE:
            yield units[owners[first]].start(), units[owners[last]].end()


def share_of_passages(documents: Iterable[Document], known: Runs) -> float:
    """What part of the words that count in these documents stands in such passages."""
    texts = [text for document in documents for text in document.scored_words]
    within = sum(end - start for text in texts for start, end in find_passages(text, known))
    return within / max(1, sum(map(len, texts)))


@functools.lru_cache(maxsize=1 << 16)
def _hashes(unit: str) -> Hashes:
    return hash_words(word for piece in words(unit) for word in piece)
