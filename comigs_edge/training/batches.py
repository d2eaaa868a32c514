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
from typing import Any, NamedTuple

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
    """All rows of one split; batches begin with number `first_row`. Raises `ComigsError` if none has a token to learn from.

    Of `new` documents, which stand in `encoded` too, there are rows of their own: `new_reads` of them come before the others.
    """

    def __init__(
        self, encoded: Iterable[Encoded], context: int, seed: int, first_row: int = 0, new: Iterable[Encoded] = ()
    ) -> None:  # fmt: skip
        self.context, self.seed, self.first_row = context, seed, first_row
        self._ids, self._scored, self._document, self.num_documents, self._omits = _join(encoded, context)
        self._starts = self._find_starts(0)
        if not len(self._starts):
            raise ComigsError("the text has no token to learn from; add more with: comigs-edge data add PATH")
        self._length = len(self._starts)
        self._add_new(new)
        self.new_reads = 0
        self._orders: dict[bool, tuple[int, npt.NDArray[np.int64]]] = {}  # of new rows, of others: the last epoch asked for
        self._places = np.argsort(np.concatenate([self._order(0, False), self._length + self._order(0, True)]))

    def _add_new(self, new: Iterable[Encoded]) -> None:
        ids, scored, document, *_ = _join(new, self.context)
        if not len(ids):
            return
        end = len(self._ids)
        self._ids, self._scored = np.concatenate([self._ids, ids]), np.concatenate([self._scored, scored])
        self._document = np.concatenate([self._document, np.where(document < 0, -1, document + self.num_documents)])
        self._starts = np.concatenate([self._starts, self._find_starts(end)])

    def _find_starts(self, first: int) -> npt.NDArray[np.int64]:
        """Where rows with a token to learn from start, from the token number `first` on."""
        starts = np.arange(first, max(first, len(self._ids) - 1), self.context)
        return np.array([s for s in starts if self._scored[s + 1 : s + self.context + 1].any()], np.int64)

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self._length

    @property
    def num_new(self) -> int:
        """Rows of new text alone, beside those of an epoch."""
        return len(self._starts) - self._length

    @property
    def num_places(self) -> int:
        """All rows."""
        return len(self._starts)

    def without_new(self) -> Rows:
        """The same with nothing before the others."""
        plain = copy.copy(self)
        plain.new_reads = 0
        return plain

    def batch(self, number: int, size: int) -> Batch:
        """The batch with this number: `size` rows, new text first and then each row once in an epoch."""
        return self.read(number * size, size)

    def read(self, done: int, count: int) -> Batch:
        """The `count` rows behind so many that were read."""
        return self._make([self._next_row(row) for row in range(done, done + count)])

    def first(self, count: int, size: int) -> list[Batch]:
        """Batches of at most `size` rows with the first `count` rows of the first epoch: always the same ones."""
        order = [self._row(position) for position in range(min(count, len(self)))]
        return [self._make(order[start : start + size]) for start in range(0, len(order), size)]

    def after(self, count: int) -> Rows:
        """The rows behind the first `count` of the first epoch, shuffled anew; `places` stay those among all rows."""
        rest, kept = copy.copy(self), self._order(0, False)[count:]
        rest._starts, rest._places, rest._length, rest._orders = self._starts[kept], self._places[kept], len(kept), {}
        return rest.without_new()

    def group(self, number: int, size: int) -> Batch:
        """The batch with this number of the first epoch; the last one may be short."""
        return self._make([int(row) for row in np.argsort(self._places)[number * size : (number + 1) * size]])

    def digest(self) -> str:
        """SHA-256 of all that the model reads, in the order of the first epoch, and of what counts if passages are left out."""
        parts = (self._ids, self._document, self._starts, self._places)
        counts = (self._scored,) if self._omits else ()
        data = b"".join(np.ascontiguousarray(part).tobytes() for part in (*parts, *counts))
        return hashlib.sha256(b"%d " % self.context + data).hexdigest()

    def _next_row(self, read: int) -> int:
        """The row behind so many that a training has read."""
        if read >= self.new_reads:
            return self._row(self.first_row + read - self.new_reads)
        epoch, index = divmod(read, self.num_new)
        return self._length + int(self._order(epoch, True)[index])

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, len(self))
        return int(self._order(epoch, False)[index])

    def _order(self, epoch: int, of_new: bool) -> npt.NDArray[np.int64]:
        """The rows of an epoch, or those of new text, counted from 0, in their order."""
        last = self._orders.get(of_new)
        if last is None or last[0] != epoch:
            size = self.num_new if of_new else self._length
            last = self._orders[of_new] = epoch, np.random.default_rng([self.seed, epoch]).permutation(size)
        return last[1]

    def _make(self, rows: list[int]) -> Batch:
        index = self._starts[rows][:, None] + np.arange(self.context + 1)  # (B, T + 1)
        return Batch(
            tokens=torch.from_numpy(self._ids[index[:, :-1]].astype(np.int64)),
            documents=torch.from_numpy(self._document[index[:, :-1]]),
            targets=torch.from_numpy(self._ids[index[:, 1:]].astype(np.int64)).reshape(-1),
            scored=torch.from_numpy(self._scored[index[:, 1:]]).reshape(-1),
            places=tuple(self._places[rows].tolist()),
        )


class _Stream(NamedTuple):
    """Documents one behind the other, padded to whole rows and the token behind them."""

    ids: npt.NDArray[np.int32]
    scored: npt.NDArray[np.bool_]
    document: npt.NDArray[np.int32]  # the number of each token's; -1: padding
    num_documents: int
    omits: bool  # whether one omits passages


def _join(encoded: Iterable[Encoded], context: int) -> _Stream:
    ids, scored, lengths, omits = array("i"), bytearray(), list[int](), False
    for each in encoded:
        ids.extend(each.ids)
        scored.extend(each.scored)
        lengths.append(len(each.ids))
        omits |= each.omits
    document, is_scored = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths), np.array(scored, np.uint8).astype(bool)
    is_scored[:1] = False  # the first token of a document has nothing before it
    is_scored[1:] &= document[1:] == document[:-1]
    padding = (0, -(len(ids) - 1) % context if ids else 0)  # only the last row can be short
    padded = np.pad(np.array(ids, np.int32), padding), np.pad(is_scored, padding)
    return _Stream(*padded, np.pad(document, padding, constant_values=-1), len(lengths), omits)
