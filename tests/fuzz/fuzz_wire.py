"""Headers and bytes of updates: `WireError`, or exactly the arrays that were asked for."""

import atheris

with atheris.instrument_imports(include=["coordinator", "json"]):
    from coordinator.protocol import wire

import numpy as np
from fuzzing import fuzz

from coordinator.protocol.errors import WireError

TABLE = {"a": ("F32", (2, 3)), "b": ("F16", (4,)), "c": ("I8", (2,))}
GOOD = wire.encode({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16), "c": np.ones(2, np.int8)})
START = len(wire.header(TABLE))


def framed(data):
    """The bytes as a header with its right length, and room for the numbers."""
    return len(data).to_bytes(8, "little") + data + bytes(34)


def one(data):
    for candidate in (data, framed(data), GOOD[:START] + data[:34].ljust(34, b"\0")):
        for read in (wire.decode, wire.read_header, lambda given, source: wire.decode_expected(given, TABLE, source)):
            try:
                found = read(candidate, "x")
            except WireError as error:
                str(error).encode()  # what is told to somebody is a text
            else:
                check(read, candidate, found)


def check(read, candidate, found):
    if read is wire.decode:
        again = wire.decode(wire.encode(found), "x")
        assert again.keys() == found.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(again[name], array)
    elif read is not wire.read_header:
        assert wire.encode(found) == candidate


SEEDS = [
    GOOD, GOOD[8:START], b'{"a":{"dtype":"F16","shape":[17],"data_offsets":[0,34]}}', b'{"__metadata__":{"format":"pt"}}', b"{}",
    b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[15],"data_offsets":[4,34]}}',
]  # fmt: skip

if __name__ == "__main__":
    fuzz("wire", one, SEEDS)
