"""Arrays as bytes: safetensors, with its header checked before any parser sees it.

The same bytes serve a device's disk and a message to the coordinator. safetensors runs no code, but accepts headers of
100 MB, duplicate names and values that are not numbers; those are refused here.

Covered:     length of the header, duplicate keys, dtypes, values that are not finite.
Not covered: which names and shapes are right is for the caller to compare.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

Arrays = dict[str, npt.NDArray[np.float32]]

MAX_HEADER = 64 * 1024  # bytes; 448 tensors of a 32-block generalist with attention take 49 KB
DTYPES = {"F32", "F16"}
_NAMES = {"<f4": "F32", "<f2": "F16", "|u1": "U8"}


class WireError(Exception):
    """Bytes that are not acceptable arrays; the text is one sentence."""


def encode(arrays: dict[str, Any]) -> bytes:
    """The arrays as safetensors bytes, in the order of their names."""
    return b"".join(pieces(arrays))


def pieces(tensors: dict[str, Any]) -> list[bytes | memoryview]:
    """The same as `encode` in pieces that need no memory of their own: the header, then each array (any type of numpy's)."""
    arrays = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    header, start = {}, 0
    for name, array in arrays.items():
        stop = start + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.str], "shape": list(array.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [
        len(text).to_bytes(8, "little") + text,
        *(array.reshape(-1).view(np.uint8).data for array in arrays.values()),
    ]


def decode(data: bytes, source: str, max_header: int = MAX_HEADER) -> Arrays:
    """The float32 arrays in `data`; `source` names it in errors. Raises `WireError` for anything doubtful."""
    header = read_header(data, source, max_header)
    for name, entry in header.items():
        if entry.get("dtype") not in DTYPES:
            raise WireError(f"{source}: tensor {name} has the type {entry.get('dtype')}; F32 and F16 are accepted")
    try:
        arrays = {name: array.astype(np.float32) for name, array in load(data).items()}
    except SafetensorError as error:
        raise WireError(f"{source} is damaged: {error}") from error
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise WireError(f"{source}: tensor {name} holds values that are not finite")
    return arrays


def read_header(data: bytes, source: str, max_header: int = MAX_HEADER) -> dict[str, dict[str, Any]]:
    """Name -> {dtype, shape, data_offsets} of each tensor, from a header of at most `max_header` bytes."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > max_header or 8 + length > len(data):
        raise WireError(f"{source} is damaged: its header claims {length:,} bytes of {len(data):,}")
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise WireError(f"{source} is damaged: its header is not JSON ({error})") from error
    header.pop("__metadata__", None)
    return dict(header)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result
