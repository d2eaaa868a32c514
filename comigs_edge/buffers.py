"""Working on some tokens at a time, in buffers that are reused."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

# Tokens worked on at once: a chunk's hidden layers (256 x 3,072 float32, 3 MB) stay in the processor's cache.
CHUNK = 256


def chunks(count: int, rows: Tensor | None = None) -> Iterator[Tensor | slice]:
    """The numbers 0 to `count` in chunks, as slices; or those in `rows`, as tensors."""
    if rows is not None:
        return iter(torch.split(rows, CHUNK))
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


@functools.cache
def _buffer(name: str, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(rows, width, dtype=dtype, device=device)


def scratch(name: str, like: Tensor, width: int) -> Tensor:
    """A (len(like), width) tensor that is reused: fresh memory costs page faults, and tears the heap into pieces.

    One name is one buffer, so a name is in use once at a time; training runs in one thread.
    """
    return _buffer(name, CHUNK, width, like.dtype, like.device)[: len(like)]


def scratch_like(name: str, like: Tensor) -> Tensor:
    """A tensor of the shape (rows, width) of `like` that is reused."""
    return _buffer(name, *like.shape, like.dtype, like.device)


def at(tensor: Tensor | None, rows: Tensor | slice) -> Tensor | None:
    """The chunk of a tensor that may be missing."""
    return None if tensor is None else tensor[rows]


def add(target: Tensor, rows: Tensor | slice, values: Tensor) -> None:
    """Adds `values` to the chunk `rows` of `target`."""
    if isinstance(rows, slice):
        target[rows].add_(values)
    else:
        target.index_add_(0, rows, values)
