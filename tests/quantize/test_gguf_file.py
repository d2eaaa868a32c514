"""The mapped reader against gguf-py, and damaged files."""

import gguf
import numpy as np
import pytest

from quantize import ggml
from quantize.formats import FILE_TYPES, FORMATS, QuantizeError
from quantize.gguf_file import GGUFFile
from quantize.gguf_writer import TensorPlan, entry, write
from tests.tiny import write_llama


def same(ours, path):
    """Compares every metadata entry and every tensor with gguf-py's reader."""
    theirs = gguf.GGUFReader(path)
    for key, field in theirs.fields.items():
        if key.startswith("GGUF."):
            continue
        expected, found = field.contents(), ours.metadata[key]
        assert list(found) == list(expected) if isinstance(expected, list) else found == expected, key
    assert [tensor.name for tensor in theirs.tensors] == list(ours.tensors)
    for tensor in theirs.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(ours.dequantize(tensor.name).reshape(expected.shape), expected)


@pytest.mark.parametrize("quantised", [None, "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_reader_equals_gguf_py(tmp_path, quantised):
    path = write_llama(tmp_path / "a.gguf", quantised=quantised)
    same(GGUFFile(path), path)


@pytest.mark.parametrize("name", ["F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantiser_equals_gguf_py(name):
    rng = np.random.default_rng(0)
    weights = np.vstack([rng.standard_normal((20, 96)), np.zeros((1, 96)), np.full((1, 96), -0.25)]).astype(np.float32)
    expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(ggml.quantize("t", weights, FORMATS[name]), expected.reshape(-1).view(np.uint8))


def test_formats_have_ggmls_sizes():
    for name, fmt in FORMATS.items():
        kind = gguf.GGMLQuantizationType[name]
        assert (fmt.type_id, fmt.block, fmt.size) == (int(kind), *gguf.GGML_QUANT_SIZES[kind])


def test_file_types_are_those_that_gguf_py_knows():
    for name, number in FILE_TYPES.items():
        kind = gguf.LlamaFileType(number).name
        assert kind.removeprefix("MOSTLY_").removeprefix("ALL_") in (name, f"{name}_M"), name  # Q4_K_M: most of it is Q4_K
    assert FILE_TYPES.keys() == FORMATS.keys()


def test_tensors_of_odd_sizes_are_read_by_gguf_py(tmp_path):
    values = {f"{size}.weight": np.arange(size, dtype=np.float32) + size for size in (5, 3, 17)}
    plans = [
        TensorPlan(name, array.shape, FORMATS["F32"], lambda array=array: array.view(np.uint8)) for name, array in values.items()
    ]
    with (tmp_path / "odd.gguf").open("wb") as file:
        write(file, [entry("general.architecture", "llama")], plans)
    for tensor in gguf.GGUFReader(tmp_path / "odd.gguf").tensors:
        np.testing.assert_array_equal(tensor.data, values.pop(tensor.name))
    assert not values


def test_a_file_cut_anywhere_is_one_sentence(tmp_path, tiny_path):
    data = tiny_path.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [0, 3, 4, 7, 20, 24, 30, *range(100, len(data), len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(QuantizeError, match=r"cut short|not a GGUF|is empty"):
            GGUFFile(path)


def test_damaged_bytes_never_end_in_a_traceback(tmp_path, tiny_path):
    data = tiny_path.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "bad.gguf"
    for _ in range(300):
        changed = bytearray(data)
        for position in rng.integers(0, 3000, 8):
            changed[position] = rng.integers(256)
        path.write_bytes(changed)
        try:
            file = GGUFFile(path)
        except QuantizeError:
            continue
        assert all(info.offset + info.size <= len(changed) for info in file.tensors.values())


def test_files_that_are_no_model_are_named(tmp_path):
    with pytest.raises(QuantizeError, match="does not exist"):
        GGUFFile(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("hello, this is text")
    with pytest.raises(QuantizeError, match="not a GGUF file"):
        GGUFFile(tmp_path / "text.gguf")
