"""Fake quantisation: the weights that a block format gives back after storing them, computed in torch.

The arithmetic is that of ggml's reference quantisers (`quantize_row_*_ref` in ggml-quants.c), operation by operation in
float32, so the result has the same bits as ggml's own on x86-64, and CPU and CUDA agree. Where a compiler fuses the
multiplication with the addition (aarch64), a weight that lies exactly between two levels may land on the other one; that
is about one weight in a million. In a block whose scale is too small for float16 every weight is zero, of either sign.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quantize.formats import QuantizeError, block_format, check_rows

BLOCK = 32  # weights; of every format that is faked here
CHUNK = 1 << 18  # weights at once: 1 MB stays in the processor's cache


def fake_quantize_(weights: Tensor, format_name: str) -> Tensor:
    """Rounds `weights` (..., width), float32 and contiguous, in place to what the format stores; returns them.

    Raises `QuantizeError` if a row is not a whole number of blocks or if the format cannot be faked (K- and IQ-formats).
    """
    fmt = block_format(format_name)
    if fmt.name not in FAKED:
        raise QuantizeError(f"{fmt.name} cannot be trained with; use one of {', '.join(FAKED)}")
    check_rows("the weights", weights.shape[-1], fmt)
    function = _FUNCTIONS.get(fmt.name)
    if function is None:
        return weights if fmt.name == "F32" else weights.copy_(weights.to(_FLOATS[fmt.name]))
    for part in torch.split(weights.view(-1, BLOCK), CHUNK // BLOCK):
        function(part)
    return weights


def fake_quantize(weights: Tensor, format_name: str) -> Tensor:
    """`fake_quantize_` of a copy."""
    return fake_quantize_(weights.detach().clone(memory_format=torch.contiguous_format), format_name)


def _round_signed(blocks: Tensor, levels: int) -> None:  # (n, 32)
    """Q4_0 and Q5_0: the weight of largest magnitude becomes -levels, the scale has its sign turned."""
    scale = _extreme(blocks).div_(-levels)  # (n, 1)
    blocks.mul_(_inverse(scale)).add_(levels + 0.5).trunc_().clamp_(max=2 * levels - 1)
    blocks.sub_(levels).mul_(_half(scale))


def _offset(blocks: Tensor, levels: int) -> None:  # (n, 32)
    """Q4_1 and Q5_1: levels from the smallest weight (0) to the largest."""
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    scale = _divide(high - low, levels)
    blocks.sub_(low).mul_(_inverse(scale)).add_(0.5).trunc_().clamp_(max=levels)
    blocks.mul_(_half(scale)).add_(_half(low))


def _bytes(blocks: Tensor) -> None:  # (n, 32)
    """Q8_0: -127 to 127, halves rounded away from zero."""
    largest = torch.maximum(blocks.amax(1, keepdim=True), blocks.amin(1, keepdim=True).neg_()).abs_()
    scale = _divide(largest, 127)
    blocks.mul_(_inverse(scale))
    whole = blocks.trunc()
    # Twice the fraction, cut, is 1 from a half on; the fraction itself is exact. Adding zero makes -0 a 0, as int8 does.
    blocks.sub_(whole).mul_(2).trunc_().add_(whole).add_(0.0).mul_(_half(scale))


def _extreme(blocks: Tensor) -> Tensor:  # (n, 32) -> (n, 1)
    """The weight of largest magnitude with its sign; of two opposite ones the first."""
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    extreme = torch.where(high > -low, high, low)
    ties = (high == -low).squeeze(1)
    if blocks.is_cuda:  # the processor does not wait to hear whether there are any
        first = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        extreme = torch.where(ties[:, None], first, extreme)
    elif ties.any():
        tied = blocks[ties]
        extreme[ties] = tied.gather(1, tied.abs().argmax(1, keepdim=True))
    return extreme.add_(0.0)  # of zeros 0, never -0


def _divide(values: Tensor, levels: int) -> Tensor:
    """In place. On CUDA torch multiplies by the inverse of a number, which is another last bit; by a tensor it divides."""
    return values.div_(torch.full_like(values, levels) if values.is_cuda else levels)


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale; 0 where that is infinite, which is where every weight becomes zero anyway."""
    return scale.reciprocal().nan_to_num_(0.0, 0.0, 0.0)


def _half(scale: Tensor) -> Tensor:
    """What float16 keeps of it."""
    return scale.half().float()


_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16}
_FUNCTIONS: dict[str, Callable[[Tensor], None]] = {
    "Q4_0": lambda blocks: _round_signed(blocks, 8),
    "Q4_1": lambda blocks: _offset(blocks, 15),
    "Q5_0": lambda blocks: _round_signed(blocks, 16),
    "Q5_1": lambda blocks: _offset(blocks, 31),
    "Q8_0": _bytes,
}
FAKED = ("F32", *_FLOATS, *_FUNCTIONS)


def straight_through(weight: Tensor, format_name: str) -> Tensor:
    """The fake-quantised weight, with the gradient of the weight itself."""
    rounded: Tensor = _StraightThrough.apply(weight, format_name)  # type: ignore[no-untyped-call]
    return rounded


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, format_name: str) -> Tensor:
        return fake_quantize(weight, format_name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
