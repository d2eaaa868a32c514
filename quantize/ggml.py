"""ggml's own quantisers and dequantisers, called through ctypes in the llama.cpp library that is installed.

They are the definition of each block format, they know every format that llama.cpp runs, and they work at 200 to 500
million weights a second where numpy code reaches 60 to 120. Only `libggml-base` is loaded, not llama.cpp itself.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantize.formats import BlockFormat, QuantizeError, check_rows

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_SUFFIX = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")


@functools.cache
def library() -> ctypes.CDLL:
    """The `ggml-base` library inside the installed llama-cpp-python; raises `QuantizeError` if it is missing."""
    spec = importlib.util.find_spec("llama_cpp")  # finds the package without importing it (0.7 s)
    if spec is None or spec.origin is None:
        raise QuantizeError("llama-cpp-python is not installed; install it with: pip install llama-cpp-python")
    folder = Path(spec.origin).parent / "lib"
    for name in (f"libggml-base.{_SUFFIX}", f"ggml-base.{_SUFFIX}"):
        if (folder / name).is_file():
            return ctypes.CDLL(str(folder / name))
    raise QuantizeError(f"no ggml library in {folder}; install llama-cpp-python again")


def dequantize(raw: Bytes, fmt: BlockFormat, out: Floats) -> None:
    """Writes the weights that the blocks in `raw` (n bytes) stand for to `out` (any shape, contiguous)."""
    if fmt.name == "F32":
        out.reshape(-1)[:] = raw.view(np.float32)
        return
    if fmt.name == "F16":
        out.reshape(-1)[:] = raw.view(np.float16)
        return
    if fmt.name == "BF16":
        out.reshape(-1).view(np.uint32)[:] = raw.view(np.uint16).astype(np.uint32) << 16
        return
    function = getattr(library(), f"dequantize_row_{fmt.name.lower().replace('_k', '_K')}")
    function.restype = None
    function(raw.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(out.size))


def quantize(name: str, weights: Floats, fmt: BlockFormat, threads: int = 1) -> Bytes:
    """The blocks (uint8, flat) that store `weights` (..., width), made on `threads` threads; `name` is for the error.

    Raises `QuantizeError` if a row is not a whole number of blocks.
    """
    width = weights.shape[-1]
    check_rows(name, width, fmt)
    weights = np.ascontiguousarray(weights, np.float32).reshape(-1, width)
    if fmt.name == "F32":
        return weights.reshape(-1).view(np.uint8)
    if fmt.name == "F16":
        return weights.astype(np.float16).reshape(-1).view(np.uint8)
    out = np.empty((len(weights), fmt.row_bytes(width)), np.uint8)
    function = library().ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    step = max(1, -(-len(weights) // max(1, threads)))

    def part(start: int) -> None:
        rows, target = weights[start : start + step], out[start : start + step]
        written = function(
            ctypes.c_int(fmt.type_id), rows.ctypes.data_as(ctypes.c_void_p), target.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(0), ctypes.c_int64(len(rows)), ctypes.c_int64(width), None,
        )  # fmt: skip
        if written != target.size:
            raise QuantizeError(f"{name}: ggml wrote {written} bytes of {fmt.name} where {target.size} were due")

    with ThreadPoolExecutor(max(1, threads)) as pool:  # ctypes releases Python's lock
        list(pool.map(part, range(0, len(weights), step)))
    return out.reshape(-1)
