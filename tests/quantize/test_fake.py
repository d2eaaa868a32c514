"""Fake quantisation against ggml's own quantisers, in the llama.cpp library that is installed, and against gguf-py's."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantize import ggml
from quantize.fake import FAKED, fake_quantize
from quantize.formats import FORMATS, QuantizeError

FORMAT_NAMES = [name for name in FAKED if name.startswith("Q")]


def by_ggml(weights, name):
    out = np.empty_like(weights)
    ggml.dequantize(ggml.quantize("weights", weights, FORMATS[name]), FORMATS[name], out)
    return out


def ours(weights, name):
    return fake_quantize(torch.from_numpy(weights), name).numpy()


def assert_same_bits(weights, name):
    np.testing.assert_array_equal(ours(weights, name).view(np.uint32), by_ggml(weights, name).view(np.uint32))


def ordinary_blocks(count, seed):
    """Normal weights of many sizes, blocks on a 4-bit grid, constant ones, and opposite extremes that tie."""
    rng = np.random.default_rng(seed)
    blocks = rng.standard_normal((count, 32)) * 10.0 ** rng.uniform(-4, 3, (count, 1))
    grid = rng.integers(-8, 8, (count, 32)) * 2.0 ** rng.integers(-10, 2, (count, 1))
    constant = np.repeat(rng.standard_normal((count, 1)), 32, axis=1)
    tied = blocks.copy()
    extreme = np.abs(tied).max(1) * 1.5
    tied[:, 3], tied[:, 20] = extreme, -extreme
    tied[::2] *= -1
    return np.concatenate([blocks, grid, constant, tied, np.zeros((1, 32)), -np.zeros((1, 32))]).astype(np.float32)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_every_bit_is_ggmls(name):
    assert_same_bits(ordinary_blocks(4000, 0), name)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_weights_halfway_between_two_levels_go_where_ggml_puts_them(name):
    rng = np.random.default_rng(1)
    levels = {"Q4_0": 7, "Q4_1": 7, "Q5_0": 15, "Q5_1": 15, "Q8_0": 126}[name]
    blocks = (rng.integers(-levels, levels, (5000, 32)) + 0.5) * rng.uniform(0.001, 1, (5000, 1))
    assert_same_bits(blocks.astype(np.float32), name)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_the_weights_are_gguf_pys_too(name):
    blocks = ordinary_blocks(500, 2)
    kind = gguf.GGMLQuantizationType[name]
    np.testing.assert_array_equal(ours(blocks, name), gguf.quants.dequantize(gguf.quants.quantize(blocks, kind), kind))


# Every float32 up to 1e37, negative zeros and denormal numbers among them; with scales beyond float16 on both sides.
block = arrays(np.float32, (2, 32), elements=st.floats(-(2.0**122), 2.0**122, width=32))


@settings(deadline=None, max_examples=300)
@given(block, st.sampled_from(FORMAT_NAMES))
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_any_block_gives_ggmls_weights(weights, name):
    # Where a scale is too small for float16 every weight is zero, of either sign; equal in value is then all that is asked.
    np.testing.assert_array_equal(ours(weights, name), by_ggml(weights, name))


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_denormal_blocks_become_zeros_and_huge_ones_what_ggml_makes_of_them(name):
    for factor in (1e-45, 1e-40, 1e-30, 1e-9, 1e6, 1e30):
        weights = (np.random.default_rng(3).standard_normal((50, 32)) * factor).astype(np.float32)
        np.testing.assert_array_equal(ours(weights, name), by_ggml(weights, name))


def test_floats_are_rounded_as_ggml_stores_them():
    weights = ordinary_blocks(500, 4)
    np.testing.assert_array_equal(ours(weights, "F16"), weights.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(ours(weights, "F32"), weights)
    kind = gguf.GGMLQuantizationType.BF16
    expected = gguf.quants.dequantize(gguf.quants.quantize(weights, kind), kind)
    np.testing.assert_array_equal(ours(weights, "BF16"), expected)


def test_the_argument_is_left_as_it_was():
    weights = torch.randn(4, 64)
    before = weights.clone()
    fake_quantize(weights, "Q4_0")
    assert torch.equal(weights, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_cuda_gives_the_same_bits(name):
    weights = torch.from_numpy(ordinary_blocks(4000, 5))
    assert torch.equal(
        fake_quantize(weights.cuda(), name).cpu().view(torch.int32), fake_quantize(weights, name).view(torch.int32)
    )


def test_a_format_that_cannot_be_faked_and_a_row_that_is_no_whole_block_are_refused():
    with pytest.raises(QuantizeError, match=r"Q4_K cannot be trained with; use one of .*Q4_0"):
        fake_quantize(torch.zeros(1, 256), "Q4_K")
    with pytest.raises(QuantizeError, match="rows of 33 weights"):
        fake_quantize(torch.zeros(2, 33), "Q8_0")
