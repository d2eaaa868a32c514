"""An update as whole numbers modulo 2^32, and the streams that hide it.

A float16 is a whole multiple of 2^-24. So with |x| <= 1 every x 2^24 is a whole number, the sum of up to 64 of them stays within
2^30, and their mean has the very bits of `aggregate.Mean` with equal weights.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from coordinator.protocol.wire import Packed, Shapes

SCALE = 1 << 24
MOST_ABSOLUTE = 1.0  # of a number in an update
PIECE = 1 << 17  # numbers that are masked at once
Ring = npt.NDArray[np.uint32]


def to_ring(update: Packed) -> Ring:
    """The numbers of a float16 update in the order of its names; raises `ValueError` for one that is beyond `MOST_ABSOLUTE`."""
    flat = np.concatenate([update[name].reshape(-1) for name in sorted(update)])
    if flat.dtype != np.float16 or not float(np.abs(flat).max(initial=0)) <= MOST_ABSOLUTE:
        raise ValueError(f"a private update is float16 and has numbers up to {MOST_ABSOLUTE:g}")
    return (flat.astype(np.float64) * SCALE).astype(np.int32).view(np.uint32)


def mean_change(total: Ring, devices: int, shapes: Shapes, bound: float) -> tuple[Packed, float]:
    """The mean of so many updates as float16, and its L2 norm before it was scaled down to `bound`, if it is beyond.

    Each device's update is within the bound, so their mean is: only one that did not keep to it can bring it beyond.
    """
    mean = total.view(np.int32) / (float(SCALE) * devices)
    norm = math.sqrt(float(mean @ mean))
    if norm > bound:
        mean *= bound / norm
    change, start = {}, 0
    for name in sorted(shapes):
        size = math.prod(shapes[name])
        change[name] = mean[start : start + size].astype(np.float16).reshape(shapes[name])
        start += size
    return change, norm


class Stream:
    """ChaCha20's key stream as numbers modulo 2^32, little-endian; each key is used for one stream only."""

    def __init__(self, key: bytes, is_added: bool) -> None:
        self._encryptor, self._is_added = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor(), is_added

    def mask(self, numbers: Ring) -> None:
        """Adds the next numbers of the stream, or subtracts them."""
        drawn = np.frombuffer(self._encryptor.update(bytes(4 * numbers.size)), "<u4")
        if self._is_added:
            numbers += drawn
        else:
            numbers -= drawn


def apply(numbers: Ring, streams: list[Stream]) -> None:
    """Masks the numbers in place with every stream."""
    for start in range(0, numbers.size, PIECE):
        piece = numbers[start : start + PIECE]
        for stream in streams:
            stream.mask(piece)
