"""Writes a GGUF file: metadata entries copied from another file or made here, tensors streamed one at a time.

The header names every tensor's size before the first is written, so the sizes are declared first and each tensor's
bytes are then made when its turn comes: a file larger than the memory can be written.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO

from quantize.formats import BlockFormat
from quantize.ggml import Bytes
from quantize.gguf_file import DEFAULT_ALIGNMENT, MAGIC, STRING, GGUFFile

VERSION = 3
UINT32, FLOAT32 = 4, 6


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to write: `shape` in numpy's order (the last extent is the row), `make` returns its bytes."""

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    make: Callable[[], Bytes]
    is_fixed: bool = False  # not trained: taken from the base

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])


def plan_copy(source: GGUFFile, name: str, renamed: str = "", order: list[int] | None = None) -> TensorPlan:
    """The tensor `name` of `source` with its bytes unchanged, under another name or with its rows in another order."""
    info = source.tensors[name]

    def make() -> Bytes:
        raw = source.raw(name)
        return raw if order is None else raw.reshape(len(order), -1)[order].reshape(-1)

    return TensorPlan(renamed or name, info.shape, info.format, make, is_fixed=True)


def entry(key: str, value: str | int | float) -> bytes:
    """One metadata entry: a string, an unsigned 32-bit integer or a 32-bit float."""
    if isinstance(value, str):
        return _string(key) + struct.pack("<I", STRING) + _string(value)
    if isinstance(value, int):
        return _string(key) + struct.pack("<II", UINT32, value)
    return _string(key) + struct.pack("<If", FLOAT32, value)


def metadata_with(source: GGUFFile, changes: dict[str, str | int | float], prefix: tuple[str, str] = ("", "")) -> list[bytes]:
    """The entries of `source` in their order, byte for byte but for those that `changes` replaces or adds.

    `prefix` renames keys: ("qwen2.", "llama.") makes `qwen2.block_count` to `llama.block_count`.
    """
    kept = []
    for key, (start, end) in source.metadata_bytes.items():
        renamed = prefix[1] + key[len(prefix[0]) :] if prefix[0] and key.startswith(prefix[0]) else key
        if renamed not in changes:
            kept.append(_string(renamed) + source.data[start + len(_string(key)) : end])
    return kept + [entry(key, value) for key, value in changes.items()]


def write(
    file: BinaryIO, metadata: list[bytes], tensors: list[TensorPlan], progress: Callable[[int], None] = lambda _: None
) -> None:
    """Writes the whole file; `progress` receives the bytes of each tensor as it is written."""
    offset, infos, alignment = 0, b"", DEFAULT_ALIGNMENT
    for tensor in tensors:
        infos += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        infos += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        infos += struct.pack("<IQ", tensor.format.type_id, offset)
        offset += _round_up(tensor.size, alignment)
    header = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)) + b"".join(metadata) + infos
    file.write(header + bytes(_round_up(len(header), alignment) - len(header)))
    for tensor in tensors:
        data = tensor.make()
        if data.size != tensor.size:
            raise AssertionError(f"{tensor.name}: {data.size} bytes made, {tensor.size} declared")
        file.write(data.data)
        file.write(bytes(_round_up(tensor.size, alignment) - tensor.size))
        progress(tensor.size)


def total_size(tensors: Iterable[TensorPlan]) -> int:
    """Bytes of all tensors, without the metadata."""
    return sum(tensor.size for tensor in tensors)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _round_up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
