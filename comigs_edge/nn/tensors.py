"""Memory that is reused, and arithmetic on some tokens at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

CHUNK = 1024  # tokens worked on at once


class Buffers:
    """Tensors that a base and its models use again: allocating anew costs page faults and fragments the heap.

    One name is one buffer, as large as the largest that was asked for: who asks for it again overwrites what it held. One
    thread at a time may work with a base.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, size: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of this size with `like`'s type and device, not cleared."""
        key, count = (name, like.dtype, like.device), math.prod(size)
        if key not in self._tensors or self._tensors[key].numel() < count:
            self._tensors[key] = torch.empty(count, dtype=like.dtype, device=like.device)
        return self._tensors[key][:count].view(size)

    def all(self) -> list[Tensor]:
        """All of them, as they are now."""
        return list(self._tensors.values())

    def rows(self, name: str, like: Tensor, width: int) -> Tensor:
        """A (len(like), width) tensor, not cleared."""
        return self.take(name, (len(like), width), like)


def chunks(count: int, rows: Tensor | None = None) -> Iterator[Tensor | slice]:
    """The numbers 0 to `count` in chunks, as slices; or those in `rows`, as tensors."""
    if rows is not None:
        return iter(torch.split(rows, CHUNK))
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


def zeros(like: Sequence[Tensor]) -> list[Tensor]:
    """Zeros of the same shapes, which a GPU clears by one kernel."""
    tensors = [torch.empty_like(tensor) for tensor in like]
    if tensors:
        torch._foreach_zero_(tensors)
    return tensors


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device. On the way to a GPU it is pinned, so that the processor need not wait for the GPU."""
    is_upload = device.type == "cuda" and not tensor.is_cuda
    return tensor.pin_memory().to(device, non_blocking=True) if is_upload else tensor.to(device)


def at(tensor: Tensor | None, rows: Tensor | slice) -> Tensor | None:
    """The chunk of a tensor, or None without one."""
    return None if tensor is None else tensor[rows]


def add(target: Tensor, rows: Tensor | slice, values: Tensor, weight: Tensor | None = None) -> None:
    """Adds `values` (M, W), times their tokens' `weight` (M, 1) if that is given, to the chunk `rows` of `target`, in place."""
    if not isinstance(rows, slice):
        target.index_add_(0, rows, values if weight is None else values * weight)
    elif weight is None:
        target[rows].add_(values)
    else:
        target[rows].addcmul_(values, weight)


def accumulate(target: Tensor, left: Tensor, right: Tensor, factor: float = 1.0) -> None:
    """Adds factor * left @ right to `target` in place, which may be of a more precise type than the product."""
    if target.dtype == left.dtype:
        target.addmm_(left, right, alpha=factor)
    else:
        target.add_(left @ right, alpha=factor)


def tensor_to_numpy(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A float32 array with the tensor's values, on the CPU and without history."""
    return tensor.detach().cpu().float().numpy()
