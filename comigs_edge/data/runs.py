"""What a text is compared by: its runs of three words, as hashes (Broder 1997), whatever form of Unicode it is written in.

Where a script writes without spaces a character is a word, and a run has as many of them as make it a text's own. The share
of one text's runs that another one holds tells how much of it stands there, whatever stands around it.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Runs = npt.NDArray[np.uint32]  # sorted, each once
Hashes = npt.NDArray[np.uint64]
NO_RUNS: Runs = np.array([], np.uint32)
LENGTH = 3  # words
# Characters that are a word each, and how many more than three a run has that begins with one. So unrelated texts share
# about as few runs as in English, a sixth; with three characters it is most of them.
_REACH = {
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff": 5,  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u3040-\u30ff": 3,  # Kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff": 2,  # Han
}
ALONE = "".join(_REACH)
_ALONE = re.compile(f"[{ALONE}]")
_SCRIPTS = [(re.compile(f"[{characters}]"), reach) for characters, reach in _REACH.items()]
_UNSEEN = re.compile("[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff]")
_WORD = re.compile(r"[^\W_]+(?:[\u0900-\u0963\u0966-\u0dff]+[^\W_]*)*")  # vowels of Indian scripts are no \w
_PIECE = re.compile(r"[\s\S]{1,65536}(?!\w)|[\s\S]{1,65536}")  # ends between two words, so a long text needs no more memory


class _WordHashes(dict[str, int]):
    """CRC-32 of words, and above it their reach; kept for those that come again."""

    def __missing__(self, word: str) -> int:
        if len(self) > 200_000:
            self.clear()
        reach = next((reach for script, reach in _SCRIPTS if script.match(word)), 0)
        self[word] = value = zlib.crc32(word.encode("utf-8", "replace")) | reach << 32
        return value


_HASHES = _WordHashes()


def words(text: str) -> Iterator[list[str]]:
    """The words of a text, piece by piece."""
    for match in _PIECE.finditer(unicodedata.normalize("NFKC", _UNSEEN.sub("", text))):
        piece = match.group().casefold()
        yield _WORD.findall(_ALONE.sub(r" \g<0> ", piece) if _ALONE.search(piece) else piece)


def runs_of(text: str) -> Runs:
    """The hashes of the runs of a text; none where it has fewer than three words."""
    pieces = [hash_words(piece) for piece in words(text)]
    return join_runs([runs_in_order(np.concatenate([*pieces, np.array([], np.uint64)]))])


def hash_words(found: Iterable[str]) -> Hashes:
    """What `runs_in_order` makes runs of."""
    return np.array([_HASHES[word] for word in found], np.uint64)


def runs_in_order(known: Hashes) -> Runs:
    """The run that begins with each of these words but the last two, neither sorted nor once."""
    if len(known) < LENGTH:
        return NO_RUNS
    hashes, reach = known & np.uint64(0xFFFFFFFF), (known >> np.uint64(32)).astype(np.int64)[: 1 - LENGTH]
    mixed = _mix(hashes[:-2], hashes[1:-1], hashes[2:])
    start = np.flatnonzero(reach)
    if len(start):  # of runs of three one that is longer is made
        last = np.minimum(start + reach[start], len(mixed) - 1)
        mixed[start] = _mix(mixed[start], mixed[(start + last) // 2], mixed[last])
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _mix(one: Hashes, two: Hashes, three: Hashes) -> Hashes:
    """Hashes of three hashes; the factors are odd, so the upper half depends on every bit."""
    mixed = one * np.uint64(0x9E3779B97F4A7C15) + two * np.uint64(0xC2B2AE3D27D4EB4F)
    return (mixed + three) * np.uint64(0xD6E8FEB86659FD93)


def join_runs(runs: Iterable[Runs]) -> Runs:
    """All runs, each once."""
    # Sorts; without counts NumPy hashes, 20 times slower.
    return np.unique(np.concatenate([*runs, NO_RUNS]), return_counts=True)[0]


def are_among(runs: Runs, known: Runs) -> npt.NDArray[np.bool_]:
    """Which of `runs`, in any order, are among the known ones."""
    return known[np.searchsorted(known[:-1], runs)] == runs if len(known) else np.zeros(len(runs), bool)


def shared(one: Runs, other: Runs) -> int:
    """How many runs two texts have in common."""
    return int(are_among(one, other).sum())


def index_runs(texts: Sequence[Runs]) -> tuple[Runs, npt.NDArray[np.int64]]:
    """The runs of all texts, sorted, and beside each the number of its text."""
    runs = np.concatenate([*texts, NO_RUNS])
    owners = np.repeat(np.arange(len(texts)), [len(each) for each in texts])
    order = np.argsort(runs, kind="stable")
    return runs[order], owners[order]


def find_origins(texts: Sequence[Runs], known: Sequence[Runs]) -> list[int | None]:
    """For each text the `known` one with which it shares at least half of the runs of one of both; None without such."""
    runs, owners = index_runs(known)
    origins: list[int | None] = []
    for text in texts:
        first, last = np.searchsorted(runs, text, "left"), np.searchsorted(runs, text, "right")
        found, votes = np.unique(owners[first[last == first + 1]], return_counts=True)  # what several have tells nothing
        best = int(found[votes.argmax()]) if len(found) else None
        origins.append(best if best is not None and 2 * votes.max() >= min(len(text), len(known[best])) else None)
    return origins
