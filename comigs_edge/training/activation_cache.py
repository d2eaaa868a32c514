"""On-disk cache of the frozen lower blocks' activations: they are the same in every epoch.

A record holds one row: a checksum, one factor a token, and the residual stream divided by it as float16. Rows stand in the
order of the first epoch, and those of a batch are computed together and read back, so a training has the same bits with a cold
and with a warm cache. The checksum finds what a power cut has left behind. Records are read and not mapped: pages of a map
count as memory of the process.

Shapes: R rows, T time, N = R*T tokens, D width.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from comigs_edge.errors import ComigsError
from comigs_edge.training.batches import Batch, Rows

Key = tuple[str | int, ...]
_CHECK = 8  # bytes of a checksum: CRC-32 plus 1, so that zeros are no record


def record_bytes(context: int, width: int) -> int:
    """Bytes of one row on disk."""
    return _CHECK + context * (4 + 2 * width)


class ActivationCache:
    """The activations for the rows of one split, computed in groups of `size` rows by `compute`, (B, T) -> (N, D).

    `key` holds everything else that the numbers depend on. Raises `ComigsError` if the disk has no room.
    """

    def __init__(self, folder: Path, rows: Rows, size: int, width: int, key: Key, compute: Callable[[Batch], Tensor]) -> None:
        self.rows, self.size, self.width, self.compute = rows, size, width, compute
        self._bytes = record_bytes(rows.context, width)
        digest = hashlib.sha256(f"{rows.digest()} {size} {key}".encode()).hexdigest()
        self.path = folder / f"below-{digest[:32]}.bin"
        self._file = _open(self.path, rows.num_places * self._bytes)

    def __call__(self, batch: Batch) -> Tensor:  # (N, D)
        """The activations for a batch of these rows; those that are not on disk yet are computed."""
        records = {place: self._read(place) for place in batch.places}
        for number in sorted({place // self.size for place, record in records.items() if record is None}):
            group = self.rows.group(number, self.size)
            self._write(group.places[0], self.compute(group))
            records |= {place: self._read(place) for place in group.places if place in records}
        rows = [row for place in batch.places if (row := records[place]) is not None]
        if len(rows) < len(batch.places):
            raise ComigsError(f"{self.path} does not keep what is written to it; train with: --plan cache=false --fresh")
        return torch.cat(rows)

    def close(self) -> None:
        """Closes the file; nothing can be read after this."""
        os.close(self._file)

    def _read(self, place: int) -> Tensor | None:  # (T, D)
        data = os.pread(self._file, self._bytes, place * self._bytes)
        if len(data) < self._bytes or int.from_bytes(data[:_CHECK], "little") != zlib.crc32(data[_CHECK:]) + 1:
            return None
        context = self.rows.context
        factors = np.frombuffer(data, np.float32, context, _CHECK).copy()
        values = np.frombuffer(data, np.float16, context * self.width, _CHECK + 4 * context).astype(np.float32)
        return torch.from_numpy(values).view(context, self.width).mul_(torch.from_numpy(factors)[:, None])

    def _write(self, first: int, activations: Tensor) -> None:
        for place, row in enumerate(torch.split(activations.cpu(), self.rows.context), first):
            factors = row.abs().amax(-1, keepdim=True).clamp_(min=1e-30)
            data = factors.numpy().tobytes() + (row / factors).half().numpy().tobytes()
            os.pwrite(self._file, (zlib.crc32(data) + 1).to_bytes(_CHECK, "little") + data, place * self._bytes)


def clear(folder: Path, keep: tuple[Path, ...] = ()) -> None:
    """Deletes the files of earlier trainings, except `keep`."""
    for path in set(folder.glob("below-*.bin")) - set(keep):
        path.unlink()


def _open(path: Path, size: int) -> int:
    """A descriptor of the file, with room for `size` bytes: the disk cannot run full during the training."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        os.close(file)
        path.unlink()
        raise ComigsError(
            f"the outputs of the blocks without experts take {size / 1e6:,.0f} MB, which the disk of {path.parent} has not "
            f"({error.strerror}); make room, or train with: comigs-edge train --fresh --plan cache=false"
        ) from error
    return file
