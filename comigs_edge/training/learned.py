"""What was trained on text that has been removed since: versions of the adapters, exported models, an interrupted training.

Manifests and checkpoints name the files (by their numbers in the corpus) that were learned, those of the adapters that they
began with too. One without such names was made before they were kept, and may have learned anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comigs_edge.data.corpus import Corpus
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import read_manifest, remove, versions
from comigs_edge.planning.plan import forget
from comigs_edge.training import checkpoint

KEY = "learned"  # in manifests and checkpoints


@dataclass(frozen=True)
class Remains:
    """What still holds removed text."""

    versions: list[int]  # of the adapters
    models: list[Path]  # exported from those
    in_training: bool  # the state of a training

    def __bool__(self) -> bool:
        return bool(self.versions or self.models or self.in_training)

    def __str__(self) -> str:
        adapters = [f"adapters {', '.join(f'{version:04d}' for version in self.versions)}"] if self.versions else []
        models = [path.name for path in self.models]
        return ", ".join(adapters + models + (["the state of the training"] if self.in_training else []))


def find_remains(
    home: Home, corpus: Corpus, also: Collection[int] = (), latest: checkpoint.Latest | None = None
) -> Remains:  # fmt: skip
    """Everything in the home that has learned a file which is no longer in the corpus, or is `also` to go.

    `latest`: the state of the training, where that was read before.
    """
    removed = corpus.removed() | set(also)
    there = versions(home.adapters) if removed else []
    numbers = [version for version in there if _holds(read_manifest(home.adapters, version), removed)]
    models = [path for version in numbers for path in sorted(home.models.glob(f"personal-{version:04d}-*.gguf"))]
    state = (latest or checkpoint.Latest(home.state)).state if removed else None
    return Remains(numbers, models, state is not None and _holds(state.progress, removed))


def delete_remains(home: Home, remains: Remains) -> None:
    """Deletes them; the caller holds the home's lock."""
    for path in remains.models:
        path.unlink(missing_ok=True)
    remove(home.adapters, remains.versions)
    if remains.in_training:
        drop_training(home)


def drop_training(home: Home) -> None:
    """Deletes the state of a training; the caller holds the home's lock."""
    from comigs_edge.training.activation_cache import clear  # loads torch, which those who only ask do without

    checkpoint.clear(home.state)
    clear(home.state)
    forget(home)


def join_learned(corpus: Corpus, before: dict[str, Any] | None) -> list[int] | None:
    """Numbers of the files that a training learns, with those of what it begins with; None where those are not known."""
    if before is not None and before.get(KEY) is None:
        return None
    now: Iterable[int] = (source["id"] for source in corpus.sources() if source["training"] or source["validation"])
    return sorted({*now, *(before or {}).get(KEY, ())})


def _holds(record: dict[str, Any], removed: set[int]) -> bool:
    learned = record.get(KEY)
    return learned is None or not removed.isdisjoint(learned)
