"""Arrays as bytes: safetensors, with its header checked before any parser sees it.

The same bytes serve a device's disk and a message to the coordinator. safetensors runs no code, but accepts headers of
100 MB, duplicate names and values that are not numbers; those are refused here. Where the tensors are known beforehand
(`decode_expected`) nothing is parsed at all: the header must be, byte for byte, the one that `header` writes.

Covered:     length of the header, duplicate keys, dtypes, values that are not finite; names and shapes in `decode_expected`.
Not covered: which names and shapes are right is for the caller of `decode` to compare.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from mmap import mmap
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from coordinator.protocol.errors import WireError

Arrays = dict[str, npt.NDArray[np.float32]]
Packed = dict[str, npt.NDArray[Any]]  # arrays of any of the types in `_NAMES`
Shapes = Mapping[str, tuple[int, ...]]  # by name
Table = dict[str, tuple[str, tuple[int, ...]]]  # name -> safetensors type, shape
Data = bytes | memoryview | mmap

MAX_HEADER = 64 * 1024  # bytes; 448 tensors of a 32-block generalist with attention take 49 KB
DTYPES = ("F32", "F16")
_NAMES = {"<f4": "F32", "<f2": "F16", "|u1": "U8", "|i1": "I8"}
_TYPES = {name: np.dtype(kind) for kind, name in _NAMES.items()}


def encode(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The arrays as safetensors bytes, in the order of their names."""
    return b"".join(pieces(arrays))


def pieces(tensors: Mapping[str, npt.NDArray[Any]]) -> list[bytes | memoryview]:
    """The bytes of `encode` without a copy: the header, then a view of each array (of any numpy type)."""
    arrays = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    table = {name: (_NAMES[array.dtype.str], array.shape) for name, array in arrays.items()}
    return [header(table), *(array.reshape(-1).view(np.uint8).data for array in arrays.values())]


def header(table: Table) -> bytes:
    """The length and the header with which `pieces` begins for such arrays."""
    entries, start = {}, 0
    for name in sorted(table):
        dtype, shape = table[name]
        stop = start + _bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def encoded_size(table: Table) -> int:
    """Bytes of such arrays, encoded."""
    return len(header(table)) + sum(_bytes(dtype, shape) for dtype, shape in table.values())


def decode(data: bytes, source: str, max_header: int = MAX_HEADER) -> Arrays:
    """The float32 arrays in `data`; `source` names it in errors. Raises `WireError` if they are not acceptable."""
    entries = read_header(data, source, max_header)
    for name, entry in entries.items():
        if entry.get("dtype") not in DTYPES:
            raise WireError(f"{source}: tensor {name} has the type {entry.get('dtype')}; F32 and F16 are accepted")
    try:
        arrays = {name: array.astype(np.float32) for name, array in load(data).items()}
    except SafetensorError as error:
        raise WireError(f"{source} is damaged: {error}") from error
    for name, array in arrays.items():
        _check_finite(name, array, source)
    return arrays


def decode_expected(data: Data, table: Table, source: str) -> Packed:
    """The arrays in `data` (bytes or a memory map), as views of it, if they are exactly those of `table`.

    Raises `WireError` naming the first difference.
    """
    wanted = header(table)
    if bytes(data[: len(wanted)]) != wanted:
        raise WireError(f"{source}: {_difference(data, table, source)}")
    if len(data) != (size := encoded_size(table)):
        raise WireError(f"{source} has {len(data):,} bytes and not {size:,}")
    arrays = {}
    for name, start in starts(table).items():
        dtype, shape = table[name]
        flat = np.frombuffer(data, _TYPES[dtype], math.prod(shape), start)
        if flat.dtype.kind == "f":
            _check_finite(name, flat, source)
        arrays[name] = flat.reshape(shape)
    return arrays


def starts(table: Table) -> dict[str, int]:
    """Where each array of an encoded table begins."""
    places, start = {}, len(header(table))
    for name in sorted(table):
        places[name] = start
        start += _bytes(*table[name])
    return places


def read_tensor(file: BinaryIO, table: Table, places: dict[str, int], name: str) -> npt.NDArray[Any]:
    """Reads one array of a file that `decode_expected` has accepted; `places` are the table's `starts`."""
    dtype, shape = table[name]
    file.seek(places[name])
    data = file.read(_bytes(dtype, shape))
    if len(data) != _bytes(dtype, shape):
        raise WireError(f"{file.name} ends within tensor {name}")
    return np.frombuffer(data, _TYPES[dtype]).reshape(shape)


def read_header(data: bytes, source: str, max_header: int = MAX_HEADER) -> dict[str, dict[str, Any]]:
    """Name -> {dtype, shape, data_offsets} of each tensor, from a header of at most `max_header` bytes."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > max_header or 8 + length > len(data):
        raise WireError(f"{source} is damaged: its header claims {length:,} bytes of {len(data):,}")
    try:
        entries = json.loads(data[8 : 8 + length], object_pairs_hook=_without_duplicates)
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise ValueError("it is no table of tensors")
        "".join(entries).encode()  # halves of characters are no names
    except (ValueError, RecursionError) as error:
        raise WireError(f"{source} is damaged: its header is not JSON ({error})") from error
    entries.pop("__metadata__", None)
    return entries


def _difference(data: Data, table: Table, source: str) -> str:
    """In words, how the header of `data` is not the one of `table`."""
    entries = read_header(bytes(data[: 8 + MAX_HEADER]), source)
    for name in sorted(table.keys() | entries.keys()):
        if name not in entries:
            return f"tensor {name} is missing"
        if name not in table:
            return f"tensor {name[:80]} is not wanted"
        dtype, shape = table[name]
        if (entries[name].get("dtype"), entries[name].get("shape")) != (dtype, list(shape)):
            return f"tensor {name} must have the type {dtype} and the shape {list(shape)}"
    return "its header is not written as this version of comigs-edge writes it"


def _check_finite(name: str, array: npt.NDArray[Any], source: str) -> None:
    if not np.isfinite(array).all():
        raise WireError(f"{source}: tensor {name} holds values that are not finite")


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _TYPES[dtype].itemsize


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result
