"""Which documents are used, and in which split each of them is: nothing that is chosen or tested on was learned.

Of documents with the same content, of chats of which one begins with the other and of near-duplicates one is used. Documents
that are alike by more than chance - half of the longer one, or the same question - form a group, which is in one split as a
whole; a small part of other documents is in a split at most as late as theirs (training comes before validation, validation
before test). A hash decides the split of a new group, so it is the same on every device. What has a split keeps it; where
text arrives that joins two splits, what would be tested although it was learned is left out.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from comigs_edge.data.chats import SIZE
from comigs_edge.data.coverage import find_overlaps, find_own, is_covered
from comigs_edge.data.likeness import Likeness, compare
from comigs_edge.data.runs import NO_RUNS, Runs, join_runs
from comigs_edge.progress import SILENT, Progress

Split = Literal["training", "validation", "test"]
SPLITS: tuple[Split, ...] = ("training", "validation", "test")
ORDER = {split: number for number, split in enumerate(SPLITS)}
LeftOut = Literal["unanswered", "copy", "beginning", "similar", "learned"]
NEAR_DUPLICATE = 0.8  # Jaccard similarity of the runs
SAME_ANSWER = 0.95  # the same of two chats with one question: most of their runs are the question's
FEW_RUNS = 6  # of eight words; below, a likeness may be chance
OVERLAPPING = (3, 0.1)  # documents, or share of all, that at most become one group because they overlap
ASKED_BY_FEW = (3, 0.1)  # documents, or share of all, up to which a question binds them


@dataclass(kw_only=True)
class Entry:
    """A document, as it is arranged."""

    sha256: str
    runs: Runs
    beginnings: bytes  # `chats.beginnings`
    question: bytes  # `chats.question`
    split: Split | None  # None: not decided yet
    seen: bool  # whether a training may have learned it, chosen or tested on it
    left_out: LeftOut | None = None  # why it is not used; "unanswered" stays


def arrange(
    entries: Sequence[Entry], training: float, validation: float, progress: Progress = SILENT,
    gone: Mapping[Split, Runs] | None = None, salt: str = "",
) -> None:  # fmt: skip
    """Sets `split`, `left_out` and `seen` of all entries, which stand in the order of their arrival.

    `training` and `validation` are shares of the documents; `gone` has the runs that were learned and are no longer there.
    Another `salt` splits the same documents otherwise.
    """
    gone = gone or {}
    for entry in entries:
        entry.left_out = "unanswered" if entry.left_out == "unanswered" else None
    groups = _Groups(len(entries))
    _leave_out_copies(entries, groups)
    _leave_out_beginnings(entries, groups)
    numbers = [number for number, entry in enumerate(entries) if entry.left_out is None]
    likeness = _compare(entries, numbers, progress)
    _leave_out_similar(entries, groups, likeness)
    _bind_questions(entries, groups)
    part_of = defaultdict(set)  # a group, and the groups that it is a small part of
    for one, other, _ in likeness.held:
        if _is_much(entries[one].runs, entries[other].runs):
            groups.join(one, other)
    own = _find_own(entries)
    _bind_overlapping(entries, groups, own)
    _recall(entries, own, gone)
    for one, other, _ in likeness.held:
        if groups.find(one) != groups.find(other):
            part_of[groups.find(one)].add(groups.find(other))
    common = {groups.find(number) for number in likeness.common}
    splits = _Splits(entries, groups, part_of, common, training, validation, salt)
    splits.decide()
    _leave_out_learned(entries, likeness)
    _leave_out_covered(entries, own, gone)
    if splits.fill_empty(own):
        _leave_out_covered(entries, own, gone)
    used = [entry for entry in entries if entry.left_out is None]
    if len({entry.split for entry in used}) == len(SPLITS):  # a training is possible
        for entry in used:
            entry.seen = True


class _Groups:
    """Sets of numbers that are joined (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, number: int) -> int:
        """The number that stands for the set of `number`."""
        while self._parent[number] != number:
            self._parent[number] = number = self._parent[self._parent[number]]
        return number

    def join(self, one: int, other: int) -> None:
        """Makes one set of two."""
        self._parent[self.find(one)] = self.find(other)

    def members(self) -> dict[int, list[int]]:
        """All sets, by the numbers that stand for them."""
        members = defaultdict(list)
        for number in range(len(self._parent)):
            members[self.find(number)].append(number)
        return members


def _leave_out_copies(entries: Sequence[Entry], groups: _Groups) -> None:
    first: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if first.setdefault(entry.sha256, number) != number and entry.left_out is None:
            entry.left_out = "copy"
            groups.join(number, first[entry.sha256])


def _leave_out_beginnings(entries: Sequence[Entry], groups: _Groups) -> None:
    """Of chats of which one begins with the other the longest is used."""
    whole = defaultdict(list)
    for number, entry in enumerate(entries):
        if entry.beginnings and entry.left_out is None:
            whole[entry.beginnings[-SIZE:]].append(number)
    for number, entry in enumerate(entries):
        for start in range(0, len(entry.beginnings) - SIZE, SIZE):
            for beginning in whole.get(entry.beginnings[start : start + SIZE], ()) if entry.left_out != "unanswered" else ():
                entries[beginning].left_out = "beginning"
                groups.join(beginning, number)


def _compare(entries: Sequence[Entry], numbers: list[int], progress: Progress) -> Likeness:
    """What `likeness.compare` finds among the entries with these numbers, in terms of all entries."""
    found = compare([entries[number].runs for number in numbers], progress)
    held = [(numbers[one], numbers[other], in_common) for one, other, in_common in found.held]
    return Likeness(held, {numbers[number] for number in found.common})


def _leave_out_similar(entries: Sequence[Entry], groups: _Groups, likeness: Likeness) -> None:
    """Of near-duplicates the one that came last is used."""
    for one, other, in_common in sorted(likeness.held, key=lambda pair: -max(pair[:2])):
        old, new = sorted((one, other))
        sizes = len(entries[one].runs), len(entries[other].runs)
        asks_the_same = entries[one].question and entries[one].question == entries[other].question
        limit = SAME_ANSWER if asks_the_same else NEAR_DUPLICATE
        if min(sizes) >= FEW_RUNS and entries[new].left_out is None and in_common >= limit * (sum(sizes) - in_common):
            entries[old].left_out = "similar"
            groups.join(old, new)


def _bind_questions(entries: Sequence[Entry], groups: _Groups) -> None:
    """Several answers to one question are one group, unless so many ask it that it is no question of its own."""
    used = [number for number, entry in enumerate(entries) if entry.left_out is None]
    counts = Counter(entries[number].question for number in used)
    limit = max(ASKED_BY_FEW[0], ASKED_BY_FEW[1] * len(used))
    first: dict[bytes, int] = {}
    for number in used:
        question = entries[number].question
        if question and counts[question] <= limit:
            groups.join(number, first.setdefault(question, number))


def _is_much(one: Runs, other: Runs) -> bool:
    """Whether a document that another one holds makes up so much of it that both are one group."""
    return len(one) >= FEW_RUNS and 2 * len(one) >= len(other)


def _find_own(entries: Sequence[Entry]) -> dict[int, Runs]:
    """The own runs of all that are used, by their numbers."""
    used = [number for number, entry in enumerate(entries) if entry.left_out is None]
    return dict(zip(used, find_own([entries[number].runs for number in used]), strict=True))


def _bind_overlapping(entries: Sequence[Entry], groups: _Groups, own: Mapping[int, Runs]) -> None:
    """Documents that overlap are one group, as long as it is small: a chain of them would be all text."""
    sizes = Counter(groups.find(number) for number in own)
    limit, numbers = max(OVERLAPPING[0], OVERLAPPING[1] * len(own)), list(own)
    for pair in find_overlaps(list(own.values())):
        one, other = (groups.find(numbers[place]) for place in pair)
        if one != other and sizes[one] + sizes[other] <= limit:
            groups.join(one, other)
            sizes[groups.find(one)] = sizes[one] + sizes[other]


def _recall(entries: Sequence[Entry], own: Mapping[int, Runs], gone: Mapping[Split, Runs]) -> None:
    """What comes back, edited or not, is in the split that it was in."""
    for number, runs in own.items():
        entry = entries[number]
        if entry.split is None:
            entry.split = next((split for split in SPLITS if is_covered(runs, gone.get(split, NO_RUNS))), None)
            entry.seen = entry.split is not None


def _leave_out_covered(entries: Sequence[Entry], own: Mapping[int, Runs], gone: Mapping[Split, Runs]) -> None:
    """What stands in several texts of earlier splits together is neither chosen nor tested on."""
    union = NO_RUNS
    for earlier, split in pairwise(SPLITS):
        learned = [each.runs for each in entries if each.split == earlier and (each.seen or each.left_out is None)]
        union = join_runs([union, *learned, gone.get(earlier, NO_RUNS)])
        for number, runs in own.items():
            if entries[number].left_out is None and entries[number].split == split and is_covered(runs, union):
                entries[number].left_out = "learned"


def _leave_out_learned(entries: Sequence[Entry], likeness: Likeness) -> None:
    """What stands in text of an earlier split is neither chosen nor tested on."""
    for number in likeness.common:
        if entries[number].left_out is None and entries[number].split != "training":
            entries[number].left_out = "learned"
    for split in SPLITS[1:]:
        for one, other, _ in likeness.held:
            used = entries[one].left_out is None and entries[other].left_out is None
            if used and entries[one].split == split and ORDER[entries[other].split or split] < ORDER[split]:
                entries[one].left_out = "learned"


class _Splits:
    """Decides the splits of groups; `part_of` has the groups that a group is a part of, `common` those that are common text."""

    def __init__(
        self, entries: Sequence[Entry], groups: _Groups, part_of: dict[int, set[int]], common: set[int],
        training: float, validation: float, salt: str,
    ) -> None:  # fmt: skip
        self.entries, self.members, self.part_of, self.common = entries, groups.members(), part_of, common
        self.training, self.validation, self.salt = training, validation, salt
        self.draws = {root: self._draw(numbers) for root, numbers in self.members.items()}

    def decide(self) -> None:
        """Gives a split to all entries without one."""
        decided = {root: known for root in self.members if (known := self._known(root)) is not None}
        new = [root for root in self.members if root not in decided]
        sizes = {root: max(len(self.entries[number].runs) for number in self.members[root]) for root in new}
        for root in sorted(new, key=lambda root: (-sizes[root], self.draws[root])):
            later = [decided[other] for other in self.part_of[root] if other in decided]
            decided[root] = 0 if root in self.common else min(later, default=self._drawn(root))
        while changed := [root for root in new if decided[root] > self._limit(root, decided)]:
            decided |= {root: self._limit(root, decided) for root in changed}
        for root, numbers in self.members.items():
            for number in numbers:
                self.entries[number].split = self.entries[number].split or SPLITS[decided[root]]

    def fill_empty(self, own: Mapping[int, Runs]) -> bool:
        """Gives a split that the hash left empty the new group of training text nearest to it; whether there was one."""
        filled = False
        edges: dict[Split, float] = {"test": 1.0, "validation": self.training}
        for split, edge in edges.items():
            used = [entry for entry in self.entries if entry.left_out is None]
            if len(used) < len(SPLITS) or any(entry.split == split for entry in used):
                continue
            training = [root for root, numbers in self.members.items() if any(self._trains(number) for number in numbers)]
            free = [root for root in training if self._is_free(root) and root not in self.common]
            free = self._alone(free, own)
            if len(training) > 1 and free:
                for number in self.members[min(free, key=lambda root: (abs(self.draws[root] - edge), self.draws[root]))]:
                    self.entries[number].split = split
                filled = True
        return filled

    def _alone(self, roots: list[int], own: Mapping[int, Runs]) -> list[int]:
        """The groups that have a document which the rest of the training text does not cover."""
        texts = [entry.runs for number, entry in enumerate(self.entries) if self._trains(number)]
        known, counts = np.unique(np.concatenate([*texts, NO_RUNS]), return_counts=True)
        alone = []
        for root in roots:
            used = [number for number in self.members[root] if self._trains(number)]
            runs = np.concatenate([self.entries[number].runs for number in used])
            inside, times = np.unique(runs, return_counts=True)
            outside = inside[counts[np.searchsorted(known, inside)] > times]
            if not all(is_covered(own[number], outside) for number in used):
                alone.append(root)
        return alone

    def _known(self, root: int) -> int | None:
        return min((ORDER[split] for number in self.members[root] if (split := self.entries[number].split)), default=None)

    def _limit(self, root: int, decided: dict[int, int]) -> int:
        return min((decided[other] for other in self.part_of[root]), default=len(SPLITS))

    def _trains(self, number: int) -> bool:
        return self.entries[number].left_out is None and self.entries[number].split == "training"

    def _is_free(self, root: int) -> bool:
        return not self.part_of[root] and not any(self.entries[number].seen for number in self.members[root])

    def _drawn(self, root: int) -> int:
        return int(self.draws[root] >= self.training) + int(self.draws[root] >= self.training + self.validation)

    def _draw(self, numbers: list[int]) -> float:
        """A number in [0, 1) that the hashes of the group's contents fix."""
        hashes = {self.entries[number].sha256 for number in numbers}
        first = min(hashes)  # of several the least one is no fair draw, but its hash is
        is_fair = len(hashes) == 1 and not self.salt
        return int((first if is_fair else hashlib.sha256((self.salt + first).encode()).hexdigest())[:13], 16) / 16**13
