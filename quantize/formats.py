"""The block formats of GGUF: how many weights a block holds and how many bytes it takes.

Source: ggml's `ggml_type` enumeration and `block_*` structures (ggml-common.h). The numbers are a file format and never
change; the tests compare them with those of the `gguf` package.
"""

from __future__ import annotations

from dataclasses import dataclass


class QuantizeError(Exception):
    """A GGUF file or a block format that cannot be used; the text is one sentence for the user."""


@dataclass(frozen=True)
class BlockFormat:
    """One storage format of a tensor's rows: `block` weights take `size` bytes."""

    name: str
    type_id: int  # the number that stands in the file
    block: int  # weights
    size: int  # bytes

    def row_bytes(self, width: int) -> int:
        """Bytes that a row of `width` weights takes."""
        return width // self.block * self.size


FORMATS: dict[str, BlockFormat] = {
    fmt.name: fmt
    for fmt in (
        BlockFormat("F32", 0, 1, 4),
        BlockFormat("F16", 1, 1, 2),
        BlockFormat("Q4_0", 2, 32, 18),
        BlockFormat("Q4_1", 3, 32, 20),
        BlockFormat("Q5_0", 6, 32, 22),
        BlockFormat("Q5_1", 7, 32, 24),
        BlockFormat("Q8_0", 8, 32, 34),
        BlockFormat("Q2_K", 10, 256, 84),
        BlockFormat("Q3_K", 11, 256, 110),
        BlockFormat("Q4_K", 12, 256, 144),
        BlockFormat("Q5_K", 13, 256, 176),
        BlockFormat("Q6_K", 14, 256, 210),
        BlockFormat("IQ4_NL", 20, 32, 18),
        BlockFormat("IQ4_XS", 23, 256, 136),
        BlockFormat("BF16", 30, 1, 2),
    )
}
BY_TYPE_ID: dict[int, BlockFormat] = {fmt.type_id: fmt for fmt in FORMATS.values()}

# `general.file_type` of a file whose large tensors have this format (llama.h, `llama_ftype`).
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15,
    "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip

# What llama.cpp's quantiser takes for rows that are not whole blocks of 256 (`tensor_type_fallback` in llama-quant.cpp).
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}


def block_format(name: str) -> BlockFormat:
    """The format called `name`, in any case of letters; raises `QuantizeError` for a name that is not known."""
    try:
        return FORMATS[name.upper()]
    except KeyError:
        raise QuantizeError(f"block format {name!r} is not known; use one of {', '.join(FORMATS)}") from None


def check_rows(name: str, width: int, fmt: BlockFormat) -> None:
    """Raises `QuantizeError` unless rows of `width` weights are whole blocks of `fmt`."""
    if width % fmt.block:
        raise QuantizeError(
            f"{name} has rows of {width} weights, which is not a multiple of {fmt.name}'s block of {fmt.block}; "
            "use F16 (--format F16, or format in [quantize] of config.toml), to which llama.cpp's own quantiser falls back too"
        )


def fit_format(name: str, width: int, fmt: BlockFormat) -> BlockFormat:
    """`fmt`, or its fallback where rows of `width` weights are not whole blocks; raises `QuantizeError` if that fails too."""
    if width % fmt.block and fmt.name in FALLBACKS:
        fmt = FORMATS[FALLBACKS[fmt.name]]
    check_rows(name, width, fmt)
    return fmt
