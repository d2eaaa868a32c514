"""Token ids become rows of equal length, and rows become batches.

Documents stand one behind the other in a stream that is cut into rows, so no row is padded; attention stays inside a
document (`Batch.documents`). The rows of batch number n follow from the seed and n alone, so a resumed training reads exactly
the batches that it would have read.
"""

from __future__ import annotations

import copy
import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from comigs_edge.data.tokenizer import Encoded
from comigs_edge.errors import ComigsError
from comigs_edge.nn.tensors import to_device


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens; `targets`, `scored` and `weights` are flat (N = B*T)."""

    tokens: Tensor  # (B, T) ids
    documents: Tensor  # (B, T) number of the document
    targets: Tensor  # (N,) the next token
    scored: Tensor  # (N,) whether the next token counts
    places: tuple[int, ...]  # of the rows, in the first epoch
    weights: Tensor | None = None  # (N,) factors on the losses of the targets; None: they count alike, their mean is the loss
    below: Tensor | None = None  # (N, D) what the blocks without experts give, where that is known

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, of those that are there."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, device: torch.device) -> Batch:
        """The same on another device.

        `documents` and `scored` stay where they are: the processor reads them, and must not wait for a GPU to do so.
        """
        moved: dict[str, Any] = {name: to_device(tensor, device) for name, tensor in self.tensors().items()}
        return replace(self, **moved | {"documents": self.documents, "scored": self.scored})

    @property
    def divisor(self) -> int | Tensor:
        """What makes the loss of the sum of all targets' losses; on a GPU where `scored` is there."""
        if self.weights is not None:
            return 1
        return self.scored.sum() if self.scored.is_cuda else self.num_scored

    @property
    def num_scored(self) -> int:
        """Number of targets that count."""
        return int(self.scored.sum())


class Rows:
    """All rows of one split; batches begin with number `first_row`. Raises `ComigsError` if none has a token to learn from."""

    def __init__(self, encoded: Iterable[Encoded], context: int, seed: int, first_row: int = 0) -> None:
        self.context, self.seed, self.first_row = context, seed, first_row
        ids, scored, lengths, self._omits = _join(encoded)
        self.num_documents = len(lengths)
        document = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        scored[:1] = False  # the first token of a document has nothing before it
        scored[1:] &= document[1:] == document[:-1]
        padding = -(len(ids) - 1) % context  # only the last row can be short
        self._ids = np.pad(ids, (0, padding))
        self._scored = np.pad(scored, (0, padding))
        self._document = np.pad(document, (0, padding), constant_values=-1)
        starts = np.arange(0, max(0, len(self._ids) - 1), context)
        self._starts = np.array([s for s in starts if self._scored[s + 1 : s + context + 1].any()], np.int64)
        if not len(self._starts):
            raise ComigsError("the text has no token to learn from; add more with: comigs-edge data add PATH")
        self._epoch: int | None = None
        self._places = np.argsort(self._order(0))

    def __len__(self) -> int:
        return len(self._starts)

    def batch(self, number: int, size: int) -> Batch:
        """The batch with this number: `size` rows, each row once in an epoch."""
        start = self.first_row + number * size
        return self._make([self._row(position) for position in range(start, start + size)])

    def first(self, count: int, size: int) -> list[Batch]:
        """Batches of at most `size` rows with the first `count` rows of the first epoch: always the same ones."""
        order = [self._row(position) for position in range(min(count, len(self)))]
        return [self._make(order[start : start + size]) for start in range(0, len(order), size)]

    def after(self, count: int) -> Rows:
        """The rows behind the first `count` of the first epoch, shuffled anew; `places` stay those among all rows."""
        rest, kept = copy.copy(self), self._order(0)[count:]
        rest._starts, rest._places, rest._epoch = self._starts[kept], self._places[kept], None
        return rest

    def group(self, number: int, size: int) -> Batch:
        """The batch with this number of the first epoch; the last one may be short."""
        return self._make([int(row) for row in np.argsort(self._places)[number * size : (number + 1) * size]])

    def digest(self) -> str:
        """SHA-256 of all that the model reads, in the order of the first epoch, and of what counts if passages are left out."""
        parts = (self._ids, self._document, self._starts, self._places)
        counts = (self._scored,) if self._omits else ()
        data = b"".join(np.ascontiguousarray(part).tobytes() for part in (*parts, *counts))
        return hashlib.sha256(b"%d " % self.context + data).hexdigest()

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, len(self))
        return int(self._order(epoch)[index])

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._epoch != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(len(self))
        return self._permutation

    def _make(self, rows: list[int]) -> Batch:
        index = self._starts[rows][:, None] + np.arange(self.context + 1)  # (B, T + 1)
        return Batch(
            tokens=torch.from_numpy(self._ids[index[:, :-1]].astype(np.int64)),
            documents=torch.from_numpy(self._document[index[:, :-1]]),
            targets=torch.from_numpy(self._ids[index[:, 1:]].astype(np.int64)).reshape(-1),
            scored=torch.from_numpy(self._scored[index[:, 1:]]).reshape(-1),
            places=tuple(self._places[rows].tolist()),
        )


def _join(encoded: Iterable[Encoded]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], list[int], bool]:
    """All ids, whether each is scored, the lengths of the documents, and whether one omits passages; no more is kept."""
    ids, scored, lengths, omits = array("i"), bytearray(), list[int](), False
    for each in encoded:
        ids.extend(each.ids)
        scored.extend(each.scored)
        lengths.append(len(each.ids))
        omits |= each.omits
    return np.array(ids, np.int32), np.array(scored, np.uint8).astype(bool), lengths, omits
