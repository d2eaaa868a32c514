"""Arrays as bytes: what is doubtful is refused. The reference is the safetensors library, and bytes built by hand."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from coordinator.protocol.errors import WireError
from coordinator.protocol.wire import MAX_HEADER, decode, decode_expected, encode, encoded_size, header, pieces


def payload(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_round_trip_keeps_the_bits():
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1.5], np.float32)}
    found = decode(encode(arrays), "x")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_same_arrays_are_the_same_bytes_in_any_order():
    one, other = np.ones(3, np.float32), np.zeros((2, 2), np.float32)
    assert encode({"a": one, "b": other}) == encode({"b": other, "a": one})


def test_the_bytes_are_those_built_by_hand():
    text = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    text += b" " * (-len(text) % 8)
    assert encode({"a": np.array([1.0, -2.0], np.float32)}) == struct.pack("<Q", len(text)) + text + struct.pack("<2f", 1, -2)


def test_what_safetensors_writes_is_read():
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1.5], np.float16)}
    for data in (save(arrays), save(arrays, metadata={"format": "np"})):
        for name, array in decode(data, "x").items():
            np.testing.assert_array_equal(array, arrays[name].astype(np.float32))


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header claims"),
        (b"\xff" * 8, "header claims"),
        (struct.pack("<Q", 1 << 63) + b"{}", "header claims 9,223,372,036,854,775,808"),
        (payload(b" " * 70_000), "header claims 70,000"),
        (payload(b"{nonsense"), "not JSON"),
        (payload(b"[]"), "no table"),
        (payload(b'{"a": 1}'), "no table"),
        (payload(b"\xff\xfe"), "not JSON"),
        (payload(b'{"\\ud800": {}}'), "not JSON"),
        (payload(b"[" * 60_000), "not JSON"),
        (payload(b'{"a": {}, "a": {}}'), "occurs twice"),
        (payload(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "occurs twice"),
        (payload({"a": {**ENTRY, "dtype": "I64"}}, bytes(4)), "type I64"),
        (payload({"a": {**ENTRY, "dtype": ["F32"]}}, bytes(4)), r"type \['F32'\]"),
        (payload({"a": {**ENTRY, "dtype": {}}}, bytes(4)), "type {}"),
        (payload({"a": {**ENTRY, "shape": "no"}}, bytes(4)), "damaged"),
        (payload({"a": {**ENTRY, "shape": [-1]}}, bytes(4)), "damaged"),
        (payload({"a": {**ENTRY, "shape": [1 << 62, 4]}}, bytes(4)), "damaged"),
        (payload({"a": {**ENTRY, "data_offsets": [4, 0]}}, bytes(4)), "damaged"),
        (payload({"a": {**ENTRY, "more": 1}}, bytes(3)), "damaged"),
        (payload({"a": ENTRY}, bytes(3)), "damaged"),
        (payload({"a": ENTRY}, bytes(9)), "damaged"),
        (payload({"a": ENTRY, "b": ENTRY}, bytes(4)), "damaged"),
        (payload({"a": ENTRY, "__metadata__": {"x": 1}}, bytes(4)), "damaged"),
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


# Against a table ------------------------------------------------------------------------------------------------------

TABLE = {"a": ("F32", (2, 3)), "b": ("F16", (4,)), "c": ("I8", (2,))}
GOOD = {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16), "c": np.ones(2, np.int8)}


def changed(**arrays):
    return encode({name: array for name, array in {**GOOD, **arrays}.items() if array is not None})


def test_what_was_expected_comes_as_views_of_the_bytes():
    found = decode_expected(encode(GOOD), TABLE, "x")
    for name, array in GOOD.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        assert not found[name].flags.owndata
    assert encoded_size(TABLE) == len(encode(GOOD))


def spelled(text, *, by):
    """The good bytes with another header of the same meaning."""
    data = encode(GOOD)
    size = 8 + int.from_bytes(data[:8], "little")
    return payload(data[8:size].replace(text, by), data[size:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(b=None), "tensor b is missing"),
        (changed(extra=np.ones(1, np.float32)), "tensor extra is not wanted"),
        (changed(a=np.ones((3, 2), np.float32)), r"tensor a must have the type F32 and the shape \[2, 3\]"),
        (changed(a=np.ones((2, 3), np.float16)), "tensor a must have the type F32"),
        (changed(b=np.array([1, 2, np.nan, 4], np.float16)), "tensor b holds values that are not finite"),
        (changed(a=np.full((2, 3), -np.inf, np.float32)), "tensor a holds values that are not finite"),
        (encode(GOOD)[:-1], "has .* bytes and not"),
        (encode(GOOD) + b"\0", "has .* bytes and not"),
        (encode(GOOD)[:100], "header claims"),
        (b"", "header claims"),
        (spelled(b'"a":', by=b'"a": '), "not written as this version"),
        (spelled(b'{"a"', by=b'{"__metadata__":{},"a"'), "not written as this version"),
        (spelled(b"[0,24]", by=b"[0,16]"), "not written as this version"),
        (spelled(b'"F32"', by=b"[]"), "tensor a must have the type"),
        (payload(b'{"' + b"x" * 60_000 + b'":{}}'), "tensor a is missing"),
        (payload(b" " * (MAX_HEADER + 1)), "header claims 65,537"),
    ],
)
def test_what_was_not_expected_is_refused_with_the_first_difference(data, message):
    with pytest.raises(WireError, match=message):
        decode_expected(data, TABLE, "x")


def test_numbers_at_the_edges_of_their_types_are_numbers():
    edges = np.array([np.finfo(np.float16).max, np.finfo(np.float16).tiny, 2**-24, -0.0], np.float16)
    np.testing.assert_array_equal(decode_expected(changed(b=edges), TABLE, "x")["b"].view(np.uint16), edges.view(np.uint16))


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data):
    for read in (lambda: decode(data, "x"), lambda: decode_expected(data, TABLE, "x")):
        with pytest.raises(WireError):
            read()


@given(st.data())
def test_no_change_of_a_byte_gets_past_with_other_shapes(data):
    good = encode(GOOD)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = good[:place] + bytes([data.draw(st.integers(0, 255))]) + good[place + 1 :]
    if place < len(header(TABLE)) and bad != good:
        with pytest.raises(WireError):
            decode_expected(bad, TABLE, "x")
