"""What a training that goes on knows of the text already: all that was there when the one before it read it.

The rest is new, and comes first: an evening's notes are a small part of the text, which a training might otherwise not reach, and
what was read twice already gets worse by a third time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.marks import read_mark
from comigs_edge.home.versions import TRAINING, read_manifest, versions
from comigs_edge.training.checkpoint import KNOWN, TRIED, Checkpoint, Progress
from comigs_edge.training.passage import find_passage
from coordinator.protocol.wire import Arrays

_NUMBERS = "<u8"  # kept as bytes, which is what checkpoints hold


class Known(NamedTuple):
    """Documents by the first 64 bits of their SHA-256, and the word of the training that made the newest adapters of them."""

    documents: frozenset[int]
    training: str

    def state(self) -> tuple[Arrays, Progress]:
        """What a checkpoint needs."""
        return {KNOWN: packed(self.documents)}, {KNOWN: self.training}


def find_known(home: Home, state: Checkpoint | None, resume: bool | None) -> Known | None:
    """What the training that comes next knows; None where it makes no difference between new text and other.

    `resume` is as in `TrainingRun.begin`. Raises `ComigsError` where the newest adapters are damaged.
    """
    if state is None or resume is False or KNOWN not in state.progress:
        return None
    known = Known(_unpacked(state.arrays[KNOWN]), state.progress[KNOWN])
    if state.is_interrupted:
        return known
    made = versions(home.adapters)
    manifest = read_manifest(home.adapters, made[-1]) if made else {}
    # What a fleet has changed learns all its text anew, and of an older version that was taken back it is not known.
    is_of_newest = manifest.get(TRAINING) == known.training and read_mark(manifest).word is None
    return known if is_of_newest else None


def packed(documents: Iterable[int]) -> npt.NDArray[Any]:
    """For a checkpoint."""
    return np.array(sorted(documents), _NUMBERS).view(np.uint8)


def is_learned(home: Home, settings: Config, state: Checkpoint | None) -> bool:
    """Whether a training would read what others have read as often as the settings say, and nothing else."""
    if state is None or state.is_interrupted or TRIED not in state.arrays or find_known(home, state, resume=None) is None:
        return False
    tried = _unpacked(state.arrays[TRIED])
    return tried.issuperset(corpus(home, settings).hashes("training")) and find_passage(state).is_read(settings.train.passes)


def _unpacked(numbers: npt.NDArray[Any]) -> frozenset[int]:
    return frozenset(numbers.view(_NUMBERS).tolist())
