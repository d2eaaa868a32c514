"""Arithmetic on named arrays; a name that only the first has stays as it is."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from coordinator.protocol.wire import Arrays


def add(a: Arrays, b: Arrays) -> Arrays:
    """a + b."""
    return {name: array + b[name] if name in b else array for name, array in a.items()}


def subtract(a: Arrays, b: Arrays) -> Arrays:
    """a - b."""
    return {name: array - b[name] if name in b else array for name, array in a.items()}


def select(arrays: Arrays, prefix: str) -> Arrays:
    """Those whose names begin with `prefix`, by the rest of their names."""
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def zeros(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    """Zeros of these shapes, float32."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def norm(arrays: Arrays) -> float:
    """L2 norm of all numbers together."""
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays.values()))


def digest(arrays: Arrays) -> str:
    """SHA-256 over names and bytes: equal adapters have equal digests."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(name.encode() + b"\0" + np.ascontiguousarray(arrays[name]).tobytes())
    return sha.hexdigest()
