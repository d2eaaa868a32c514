"""What a training that goes on knows of the text already: all that trainings before it have read to the end.

The rest is new, and comes first: an evening's notes are a small part of the text, which a training might otherwise not reach, and
what was read twice already gets worse by a third time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.marks import read_mark
from comigs_edge.home.versions import TRAINING, read_manifest, versions
from comigs_edge.training.checkpoint import BEGUN, KNOWN, TRIED, Checkpoint, Progress
from comigs_edge.training.passage import Passage, find_passage
from comigs_edge.training.schedule import FEWEST
from coordinator.protocol.wire import Arrays

if TYPE_CHECKING:
    from comigs_edge.training.run import TrainingRun  # loads torch

NOTHING_NEW = "there is nothing new to learn from; only --steps reads once more what was read before, mostly in vain"
MODEL = "model"  # in checkpoints: what config.toml asked for there
_NUMBERS = "<u8"  # kept as bytes, which is what checkpoints hold


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Of a training, in documents by the first 64 bits of their SHA-256."""

    present: frozenset[int] = frozenset()  # training text
    shared: frozenset[int] = frozenset()  # of these what is not local
    begun: frozenset[int] = frozenset()  # those that were there when the training began
    tried: frozenset[int] = frozenset()  # those that trainings before have read to the end, whatever came of it
    known: frozenset[int] | None = None  # the shared ones that the newest adapters have learned; None: all text is alike
    word: str = ""  # of the training that made those adapters

    def is_learned(self, passage: Passage, times: float) -> bool:
        """Whether there is nothing that was not read so often."""
        return self.known is not None and self.present <= self.tried and passage.is_read(times)

    def state(self) -> tuple[Arrays, Progress]:
        """What a checkpoint needs."""
        arrays = {TRIED: _packed(self.tried), BEGUN: _packed(self.begun)}
        return (arrays, {}) if self.known is None else (arrays | {KNOWN: _packed(self.known)}, {KNOWN: self.word})

    def after(self, run: TrainingRun, has_version: bool) -> Knowledge:
        """Behind the end of a training, which has read all that was new unless it was shorter than that.

        Text that made nothing better is still to be learned, by the next training that has other new text.
        """
        is_whole = run.trainer.expert_steps * run.plan.batch >= run.rows[0].new_reads
        known = self.shared & self.begun if run.is_better and is_whole else self.known
        tried = self.begun if is_whole else self.tried
        return Knowledge(tried=tried, known=known, word=run.word if has_version else self.word)


def find_knowledge(home: Home, settings: Config, state: Checkpoint | None, resume: bool | None) -> Knowledge:
    """That of the training that comes next; `resume` is as in `TrainingRun.begin`.

    Raises `ComigsError` where the newest adapters are damaged.
    """
    documents = corpus(home, settings)
    shared = frozenset(documents.hashes("training", local=False))
    present = frozenset(documents.hashes("training"))
    if state is None or not state.progress or resume is False:
        return Knowledge(present=present, shared=shared, begun=present)
    is_of_newest = KNOWN in state.progress and (state.is_interrupted or _is_of_newest(home, state))
    # In a fleet all text is learned in every round.
    known = _unpacked(state, KNOWN) if is_of_newest and not home.fleet.exists() else None
    return Knowledge(
        present=present, shared=shared, begun=_unpacked(state, BEGUN) if state.is_interrupted else present,
        tried=_unpacked(state, TRIED), known=known, word=state.progress.get(KNOWN, ""),
    )  # fmt: skip


def goes_on(home: Home) -> bool:
    """Whether a new training would go on from the newest adapters more slowly: not from what a fleet has changed."""
    made = versions(home.adapters)
    return bool(made) and read_mark(read_manifest(home.adapters, made[-1])).word is None


def is_learned(home: Home, settings: Config, state: Checkpoint | None) -> bool:
    """Whether a training by these settings of config.toml would only read what others have read as often as they say."""
    if state is None or not state.progress or state.is_interrupted:
        return False
    asked = state.progress.get(MODEL), state.progress["base_sha256"]
    if asked != (asdict(settings.model), settings.base.sha256):
        return False
    return find_knowledge(home, settings, state, None).is_learned(find_passage(state), settings.train.passes)


def steps_for_news(run: TrainingRun) -> int | None:
    """Expert steps that new text takes, where all other text was read as often as it is to be; None: no such number.

    It does not depend on local text, which is learned behind them.
    """
    rows, knowledge = run.rows[0], run.knowledge
    if not run.passage.is_read(run.settings.train.passes, but=rows.num_new):
        return None
    if rows.new_reads:
        return math.ceil(rows.new_reads / run.plan.batch)
    return 0 if knowledge.known is not None and knowledge.shared <= knowledge.known else None


def enough(run: TrainingRun) -> int:
    """Expert steps in which all that is to be read is read as often as the settings say."""
    rows, steps = run.rows[0], steps_for_news(run)
    reads = run.settings.train.passes * len(rows) + rows.new_reads
    return max(FEWEST, math.ceil(reads / run.plan.batch)) if steps is None else steps


def _is_of_newest(home: Home, state: Checkpoint) -> bool:
    """Whether the newest adapters are those that the state tells of, and no older ones that were taken back."""
    return goes_on(home) and read_manifest(home.adapters, versions(home.adapters)[-1]).get(TRAINING) == state.progress[KNOWN]


def _packed(documents: Iterable[int]) -> npt.NDArray[Any]:
    return np.array(sorted(documents), _NUMBERS).view(np.uint8)


def _unpacked(state: Checkpoint, name: str) -> frozenset[int]:
    array = state.arrays.get(name)
    return frozenset() if array is None else frozenset(array.view(_NUMBERS).tolist())
