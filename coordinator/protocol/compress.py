"""How an update's numbers are stored on their way: float32, float16, or int8 in blocks of 32 with a float16 scale.

A device adds its rounding errors to its next update (error feedback, Seide et al. 2014). That needs no extra state: an update is
the device's generalist minus what the coordinator has received so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from coordinator.protocol.wire import Arrays, Packed, Shapes, Table

UpdateFormat = Literal["float32", "float16", "int8"]
FORMATS: tuple[str, ...] = get_args(UpdateFormat)
MASKED = "masked"  # what a private fleet asks for: float16, in a sum with others
BLOCK = 32
_DTYPES = {"float32": "F32", "float16": "F16"}
SCALES = ".scales"


def update_format(format_name: str, trained_from: int) -> str:
    """The format of an update: the first generalist itself (trained from -1) is never rounded."""
    return "float32" if trained_from < 0 else "float16" if format_name == MASKED else format_name


def pack(arrays: Arrays, format_name: str) -> Packed:
    """The arrays as they are sent."""
    if format_name == "int8":
        packed: Packed = {}
        for name, array in arrays.items():
            packed[name], packed[name + SCALES] = _quantise(array)
        return packed
    return {name: array.astype(format_name) for name, array in arrays.items()}


def unpack(packed: Packed, shapes: Shapes, format_name: str) -> Arrays:
    """The reverse of `pack`, as float32; `shapes` are those of the arrays that were packed."""
    if format_name != "int8":
        return {name: packed[name].astype(np.float32).reshape(shape) for name, shape in shapes.items()}
    arrays: Arrays = {}
    for name, shape in shapes.items():
        blocks = packed[name].astype(np.float32) * packed[name + SCALES].astype(np.float32)[:, None]
        arrays[name] = blocks.reshape(-1)[: math.prod(shape)].reshape(shape)
    return arrays


def unpack_flat(packed: Packed, format_name: str) -> Iterator[npt.NDArray[np.float32]]:
    """The arrays of `unpack`, one after the other, flat; int8's may end with zeros more."""
    if format_name != "int8":
        return (array.reshape(-1).astype(np.float32, copy=False) for array in packed.values())
    names = packed.keys() - {name + SCALES for name in packed}
    return (unpack(packed, {name: (packed[name].size,)}, format_name)[name] for name in names)


def largest(packed: Packed, format_name: str) -> dict[str, float]:
    """The largest absolute value of each array, as `unpack` makes it."""
    if format_name != "int8":
        return {name: float(max(array.max(initial=0), -array.min(initial=0))) for name, array in packed.items()}
    values = {}
    for name in packed.keys() - {name + SCALES for name in packed}:
        levels = np.abs(packed[name].astype(np.int16)).max(1, initial=0)  # -128 has no counterpart in int8
        values[name] = float((levels * np.abs(packed[name + SCALES].astype(np.float32))).max(initial=0))
    return values


def table(shapes: Shapes, format_name: str) -> Table:
    """Type and shape of every tensor that `pack` makes of arrays of these shapes."""
    if format_name != "int8":
        return {name: (_DTYPES[format_name], tuple(shape)) for name, shape in shapes.items()}
    entries: Table = {}
    for name, shape in shapes.items():
        blocks = -(-math.prod(shape) // BLOCK)
        entries[name], entries[name + SCALES] = ("I8", (blocks, BLOCK)), ("F16", (blocks,))
    return entries


def _quantise(array: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Any shape -> levels (blocks, 32), scales (blocks,)."""
    flat = array.reshape(-1).astype(np.float32)
    blocks = np.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    scales = (np.abs(blocks).max(1) / 127).astype(np.float16)
    known = scales.astype(np.float32)[:, None]  # the scale as it is stored, so that rounding is to the nearest
    inverse = np.divide(1.0, known, out=np.zeros_like(known), where=known > 0)
    return np.clip(np.rint(blocks * inverse), -127, 127).astype(np.int8), scales
