"""Reads a GGUF file through a memory map: metadata at once, tensors when they are asked for.

The layout is GGUF version 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). gguf-py's reader needs 3 to 8 s
for a vocabulary of 49,000 tokens, this one 0.2 s; the tests compare the two. Every length is checked against the size of
the file before it is used, so a damaged file ends in one sentence.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import UserDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quantize import ggml
from quantize.formats import BY_TYPE_ID, BlockFormat, QuantizeError
from quantize.ggml import Bytes, Floats

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32  # bytes
FOREIGN = 256  # bytes that tell what a file is that is no GGUF
STRING, ARRAY, BOOL = 8, 9, 7
LENGTH = struct.Struct("<Q")  # of a string
# GGUF value type -> (numpy type, bytes)
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), BOOL: np.dtype("?"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is in numpy's order: (rows, width), the reverse of the file's."""

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    offset: int  # bytes from the start of the file
    size: int  # bytes


class Strings(NamedTuple):
    """Where an array of strings begins, and how many there are."""

    start: int
    number: int


class Metadata(UserDict[str, Any]):
    """What a file says of itself; an array of strings is read when it is asked for."""

    def __init__(self, cursor: _Cursor) -> None:
        super().__init__()
        self._cursor = cursor

    def __getitem__(self, key: str) -> Any:
        value = self.data[key]
        if isinstance(value, Strings):
            self._cursor.position = value.start
            value = self.data[key] = [self._cursor.string() for _ in range(value.number)]
        return value


class _Cursor:
    """A position in the map that never goes past its end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.position = data, path, 0

    def take(self, count: int) -> int:
        """Moves on by `count` bytes and returns where they start."""
        start = self.position
        if count < 0 or start + count > len(self.data):
            raise QuantizeError(
                f"{self.path} is cut short or damaged (it ends at byte {len(self.data):,}, and more was due at "
                f"{start:,}); get the file again"
            )
        self.position = start + count
        return start

    def unsigned(self, size: int) -> int:
        start = self.take(size)
        return int.from_bytes(self.data[start : start + size], "little")

    def string(self) -> str:
        length = self.unsigned(8)
        start = self.take(length)
        return self.data[start : start + length].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """One metadata value; arrays of numbers come as numpy arrays, of those of strings only where they lie."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array(self.unsigned(4), self.unsigned(8))
        dtype = self.scalar(kind)
        start = self.take(dtype.itemsize)
        return np.frombuffer(self.data, dtype, 1, start)[0].item()

    def array(self, kind: int, count: int) -> Any:
        if kind == STRING:
            if count * 8 > len(self.data):
                self.take(count * 8)  # raises where the file is too short for them
            return self.strings(count)
        dtype = self.scalar(kind)
        return np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize)).copy()

    def strings(self, count: int) -> Strings:
        """Steps over them: a vocabulary takes a tenth of a second to read, and few who open a file want it."""
        start, position, last = self.position, self.position, len(self.data) - 8
        for _ in range(count):
            position = position + 8 + LENGTH.unpack_from(self.data, position)[0] if position <= last else len(self.data) + 1
        self.take(position - start)  # raises where the file ends before
        return Strings(start, count)

    def scalar(self, kind: int) -> np.dtype[Any]:
        if kind not in SCALARS:
            raise QuantizeError(f"{self.path} is damaged: metadata of type {kind} at byte {self.position:,}")
        return SCALARS[kind]


def foreign_kind(start: bytes) -> str | None:
    """What a file with this `start` is where it is no model at all, and what to do; None if that is not known."""
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer and not the file that it stands for; get that with: git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page: its address was wrong, or wants a login; download the model's file itself"
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04")) or (start.startswith(b"PK\x03\x04") and b"data.pkl" in start):
        return "made of PyTorch's pickles, which can run code and are not read; get the model as .safetensors or .gguf"
    if text.startswith((b'{"', b"[{")):
        return "JSON and no model, perhaps a server's refusal; look into it, and download the model's file itself"
    if packed := next((name for mark, name in _PACKED.items() if start.startswith(mark)), None):
        return f"packed ({packed}); unpack it and name the .gguf file that comes out"
    return None


_PACKED = {
    b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
}  # fmt: skip


class GGUFFile:
    """A GGUF file, open for reading.

    metadata       key -> value (str, int, float, bool, numpy array, list of str)
    metadata_bytes key -> (start, end): the bytes of the whole entry, so that a writer can copy it unchanged
    tensors        name -> `TensorInfo`

    Raises `QuantizeError` for a file that is missing, not GGUF, of another version, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = _map(path)
        cursor = _Cursor(self.data, path)
        if self.data[:4] != MAGIC:
            kind = f"not a GGUF file (it starts with {self.data[:4]!r}); name a .gguf file"
            if self.data[8:9] == b"{":
                kind = "a safetensors file; name the folder that it lies in, with its config.json and tokenizer"
            raise QuantizeError(f"{path} is {foreign_kind(self.data[:FOREIGN]) or kind}")
        cursor.take(4)
        version = cursor.unsigned(4)
        if version in (2 << 24, 3 << 24):
            raise QuantizeError(f"{path} is big-endian, made for another kind of processor; get the file for little-endian ones")
        if version not in (2, 3):
            raise QuantizeError(f"{path} is GGUF version {version}; versions 2 and 3 can be read")
        num_tensors, num_entries = cursor.unsigned(8), cursor.unsigned(8)
        self.metadata = Metadata(cursor)
        self.metadata_bytes: dict[str, tuple[int, int]] = {}
        for _ in range(num_entries):
            start = cursor.position
            key = cursor.string()
            self.metadata.data[key] = cursor.value(cursor.unsigned(4))
            self.metadata_bytes[key] = (start, cursor.position)
        self.alignment = self.count("general.alignment", DEFAULT_ALIGNMENT)
        if self.alignment < 1:
            raise QuantizeError(f"{path} is damaged: its alignment is {self.alignment}")
        self.tensors = self._read_tensors(cursor, num_tensors)

    def count(self, key: str, default: int) -> int:
        """A whole number of the metadata; raises `QuantizeError` where it is anything else."""
        value = self.metadata.get(key, default)
        if type(value) is not int:
            raise QuantizeError(f"{self.path} is damaged: {key} is {str(value)[:40]!r} and no whole number; get the file again")
        return value

    def _read_tensors(self, cursor: _Cursor, count: int) -> dict[str, TensorInfo]:
        infos = []
        for _ in range(count):
            name, dims = cursor.string(), cursor.unsigned(4)
            if dims > 4:
                raise QuantizeError(f"{self.path} is damaged: tensor {name!r} has {dims} dimensions")
            shape = tuple(cursor.unsigned(8) for _ in range(dims))[::-1]
            type_id, offset = cursor.unsigned(4), cursor.unsigned(8)
            if type_id not in BY_TYPE_ID:
                raise QuantizeError(
                    f"{self.path} holds {name} as {_type_name(type_id)}, which is not supported; get the model in Q4_K_M, Q6_K "
                    "or Q8_0"
                )
            infos.append((name, shape, BY_TYPE_ID[type_id], offset))
        start = -(-cursor.position // self.alignment) * self.alignment
        needed = max((start + offset + fmt.row_bytes(math.prod(shape)) for _, shape, fmt, offset in infos), default=0)
        if needed > len(self.data):
            raise QuantizeError(
                f"{self.path} is cut short or damaged: it has {len(self.data):,} of the {needed:,} bytes that its tensors need; "
                "get the file again, whole"
            )
        tensors = {}
        for name, shape, fmt, offset in infos:
            size = fmt.row_bytes(math.prod(shape))
            cursor.position = start + offset
            cursor.take(size)
            tensors[name] = TensorInfo(name, shape, fmt, start + offset, size)
        return tensors

    def raw(self, name: str) -> Bytes:
        """The tensor's bytes as they lie in the file (uint8, flat); a view of the map, nothing is copied."""
        info = self.tensors[name]
        return np.frombuffer(self.data, np.uint8, info.size, info.offset)

    def dequantize(self, name: str, out: Floats | None = None, rows: slice | None = None) -> Floats:
        """The tensor's weights as float32, or those of some `rows`, in `out` if that is given (contiguous, as many elements)."""
        info, raw, shape = self.tensors[name], self.raw(name), self.tensors[name].shape
        if rows is not None:
            start, stop, _ = rows.indices(shape[0])
            width = info.size // shape[0]
            raw, shape = raw[start * width : stop * width], (stop - start, *shape[1:])
        if out is None:
            out = np.empty(shape, np.float32)
        ggml.dequantize(raw, info.format, out)
        return out

    def gather(self, name: str, rows: npt.NDArray[np.int64]) -> Floats:
        """Some rows (M,) of a matrix as float32, (M, width)."""
        info = self.tensors[name]
        out, table = np.empty((len(rows), info.shape[1]), np.float32), self.raw(name).reshape(info.shape[0], -1)
        for start in range(0, len(rows), 128):  # the system maps many pages around each row that is read
            part = slice(start, start + 128)
            ggml.dequantize(np.ascontiguousarray(table[rows[part]]).reshape(-1), info.format, out[part])
            self.let_go()
        return out

    def let_go(self) -> None:
        """Drops the pages read so far from memory (madvise); they are read again on demand."""
        self.data.madvise(mmap.MADV_DONTNEED)


def _type_name(type_id: int) -> str:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(type_id).name if type_id in set(GGMLQuantizationType) else f"type {type_id}"


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise QuantizeError(f"{path} does not exist; name a GGUF file") from None
    except ValueError:
        raise QuantizeError(f"{path} is empty; get the file again") from None
    except OSError as error:
        raise QuantizeError(f"{path} cannot be read: {error.strerror}") from None
