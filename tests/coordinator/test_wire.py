"""Arrays as bytes: what is doubtful is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load

from coordinator.wire import WireError, decode, encode, pieces


def payload(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_round_trip_keeps_the_bits():
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1.5], np.float32)}
    found = decode(encode(arrays), "x")
    assert list(found) == ["a", "b"] or set(found) == {"a", "b"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_same_arrays_are_the_same_bytes_in_any_order():
    one, other = np.ones(3, np.float32), np.zeros((2, 2), np.float32)
    assert encode({"a": one, "b": other}) == encode({"b": other, "a": one})


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header claims"),
        (b"\xff" * 8, "header claims"),
        (payload(b" " * 70_000), "header claims 70,000"),
        (payload(b"{nonsense"), "not JSON"),
        (payload(b'{"a": {}, "a": {}}'), "occurs twice"),
        (payload({"a": {**ENTRY, "dtype": "I64"}}, bytes(4)), "type I64"),
        (payload({"a": ENTRY}, bytes(3)), "damaged"),
        (payload({"a": ENTRY}, bytes(9)), "damaged"),
        (payload({"a": ENTRY}, np.float32(np.nan).tobytes()), "not finite"),
        (payload({"a": ENTRY}, np.float32(np.inf).tobytes()), "not finite"),
    ],
)
def test_doubtful_bytes_are_refused(data, message):
    with pytest.raises(WireError, match=message):
        decode(data, "update")


def test_pieces_are_what_safetensors_reads():
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(7.5, np.float32)}
    arrays["c"] = np.arange(5, dtype=np.uint8)
    found = load(b"".join(pieces(arrays)))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
