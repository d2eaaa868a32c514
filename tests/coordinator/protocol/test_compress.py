"""Updates as float16 and int8: what rounding takes comes with the next one; int8 against float64 arithmetic."""

import math

import numpy as np
import pytest

from coordinator.protocol import compress, wire
from coordinator.protocol.compress import BLOCK, FORMATS, pack, table, unpack

SHAPES = {"a": (3, 50), "b": (7,), "c": (2, 4, 8)}


def random_arrays(seed, size=1.0):
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) * size).astype(np.float32) for name, shape in SHAPES.items()}


def sent(arrays, format_name):
    """As it arrives, through the bytes."""
    data = wire.encode(pack(arrays, format_name))
    return unpack(wire.decode_expected(data, table(SHAPES, format_name), "x"), SHAPES, format_name)


def test_float32_arrives_with_the_same_bits():
    arrays = random_arrays(0)
    for name, array in sent(arrays, "float32").items():
        np.testing.assert_array_equal(array, arrays[name])


def test_float16_is_rounded_to_the_nearest():
    arrays = random_arrays(0)
    for name, array in sent(arrays, "float16").items():
        np.testing.assert_array_equal(array, arrays[name].astype(np.float16).astype(np.float32))


def test_int8_is_within_half_a_step_of_each_block():
    for seed in range(10):
        arrays = random_arrays(seed)
        for name, array in sent(arrays, "int8").items():
            flat = arrays[name].reshape(-1).astype(np.float64)
            error = np.abs(array.reshape(-1) - flat)
            for start in range(0, flat.size, BLOCK):
                exact = np.abs(flat[start : start + BLOCK]).max() / 127
                step = np.float64(np.float16(exact))  # as it is sent
                assert step == pytest.approx(exact, rel=2**-11)
                assert error[start : start + BLOCK].max() <= step / 2 * (1 + 1e-6)


def test_zeros_and_numbers_below_float16_arrive_as_zeros():
    tiny = {name: np.full(shape, 1e-9, np.float32) for name, shape in SHAPES.items()}
    for format_name in ("int8", "float16"):
        assert not any(array.any() for array in sent(tiny, format_name).values())


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5])
def test_what_is_received_stays_one_rounding_from_the_truth_over_a_hundred_rounds(format_name, size):
    """Error feedback: each round sends the truth less what was received so far, so errors do not add up."""
    truth = {name: np.zeros(shape) for name, shape in SHAPES.items()}  # float64: the sum of true increments
    received = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    without = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for seed in range(100):
        increment = random_arrays(seed, size)
        truth = {name: truth[name] + increment[name] for name in SHAPES}
        change = {name: truth[name].astype(np.float32) - received[name] for name in SHAPES}
        received = {name: received[name] + array for name, array in sent(change, format_name).items()}
        without = {name: without[name] + array for name, array in sent(increment, format_name).items()}
    error, drift = (max(np.abs(found[n] - truth[n]).max() for n in SHAPES) for found in (received, without))
    largest = size * 6  # of an increment with what the last rounding left
    steps = {"float32": 1e-6, "float16": 2**-11, "int8": 1 / 127 + 2**-11}
    floor = {"float32": 0, "float16": 2**-25, "int8": 127 * 2**-25}  # float16 has no smaller scale
    assert error <= largest * steps[format_name] + floor[format_name] + np.abs(truth["a"]).max() * 1e-6
    if format_name == "int8":
        assert error < drift / 2  # without feedback errors add up


def test_the_table_says_what_pack_makes():
    for format_name in FORMATS:
        packed = pack(random_arrays(0), format_name)
        made = {name: (array.dtype, array.shape) for name, array in packed.items()}
        names = {"F32": np.float32, "F16": np.float16, "I8": np.int8}
        assert made == {n: (np.dtype(names[t]), s) for n, (t, s) in table(SHAPES, format_name).items()}


def test_int8_takes_little_more_than_half_of_float16():
    shapes = {"a": (64, 576)}
    count = math.prod(shapes["a"])
    sizes = {
        name: sum(math.prod(s) * {"F32": 4, "F16": 2, "I8": 1}[t] for t, s in table(shapes, name).values()) for name in FORMATS
    }
    assert sizes == {"float32": 4 * count, "float16": 2 * count, "int8": count + 2 * count // BLOCK}


def test_the_largest_number_is_found_without_unpacking():
    for format_name in FORMATS:
        packed = pack(random_arrays(3), format_name)
        unpacked = unpack(packed, SHAPES, format_name)
        found = compress.largest(packed, format_name)
        assert found == {name: np.abs(array).max() for name, array in unpacked.items()}


def test_the_level_that_int8_alone_has_below_zero_counts_as_128():
    packed = {"a": np.full((1, BLOCK), -128, np.int8), "a.scales": np.full(1, -64, np.float16)}
    assert compress.largest(packed, "int8") == {"a": 8192.0}


def test_the_first_generalist_is_never_rounded():
    for format_name in FORMATS:
        assert compress.update_format(format_name, -1) == "float32"
        assert compress.update_format(format_name, 0) == format_name
