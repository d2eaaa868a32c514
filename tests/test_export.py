"""The exported file, run by unmodified llama.cpp and read by gguf-py."""

import gguf
import numpy as np
import pytest
import torch

from comigs_edge.base import open_base
from comigs_edge.export import FORMATS_TO_EXPORT, SOURCE_KEY, export
from comigs_edge.model import Model
from quantize.formats import QuantizeError
from quantize.gguf_file import GGUFFile
from tests.conftest import divergence, llama_logits
from tests.tiny import write_llama

IDS = torch.randint(3, 260, (120,), generator=torch.Generator().manual_seed(2)).tolist()


def torch_logits(base, adapters):
    model = Model(base, adapters)
    with torch.no_grad():
        return model.logits(model(torch.tensor([IDS])).hidden)


@pytest.mark.parametrize("quantised", [None, "Q4_1"])
@pytest.mark.parametrize(("specialists", "k", "attention"), [(0, 1, False), (1, 2, True), (2, 3, False), (3, 2, False)])
def test_exported_mixture_equals_torch_in_llama_cpp(tmp_path, make_adapters, specialists, k, attention, quantised):
    path = write_llama(tmp_path / "base.gguf", quantised=quantised)
    base = open_base(path)
    adapters = make_adapters(specialists, k, attention, base)
    export(GGUFFile(path), adapters, "F32", tmp_path / "out.gguf")
    expected, found = llama_logits(tmp_path / "out.gguf", IDS), torch_logits(base, adapters)
    assert divergence(expected, found) < 1e-8
    assert (expected.argmax(-1) == found.argmax(-1)).all()
    assert divergence(torch_logits(base, None), found) > 1e-2  # the adapters do change something


@pytest.mark.parametrize("format_name", FORMATS_TO_EXPORT)
def test_every_format_holds_gguf_pys_quantisation_of_the_merged_weights(
    tmp_path, tiny_path, make_adapters, format_name
):
    adapters = make_adapters()
    export(GGUFFile(tiny_path), adapters, format_name, tmp_path / "out.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    kind = gguf.GGMLQuantizationType[format_name]
    for index, name in enumerate(("ffn_gate", "ffn_up", "ffn_down")):
        weight = torch.from_numpy(GGUFFile(tiny_path).dequantize(f"blk.1.{name}.weight"))
        loras = [expert[index] for expert in adapters.experts[1]]
        merged = torch.stack([weight + adapters.layout.scale * (lora.b @ lora.a) for lora in loras]).numpy()
        found = gguf.quants.dequantize(tensors[f"blk.1.{name}_exps.weight"].data, kind)
        expected = gguf.quants.dequantize(gguf.quants.quantize(merged, kind), kind)
        assert tensors[f"blk.1.{name}_exps.weight"].tensor_type == kind
        # The two merges may differ in a last bit, which can move a weight that lies between two levels to the other one.
        assert (np.abs(found - expected) < 1e-5).mean() > 0.999
    assert torch.isfinite(llama_logits(tmp_path / "out.gguf", IDS)).all()


@pytest.mark.parametrize(("format_name", "limit"), [("F16", 1e-3), ("Q8_0", 0.02)])
def test_formats_of_8_bits_and_more_stay_near_the_mixture(
    tmp_path, tiny_path, tiny_base, make_adapters, format_name, limit
):
    adapters = make_adapters()
    export(GGUFFile(tiny_path), adapters, format_name, tmp_path / "out.gguf")
    assert divergence(torch_logits(tiny_base, adapters), llama_logits(tmp_path / "out.gguf", IDS)) < limit


def test_gguf_py_reads_the_same_tensors_and_untouched_bytes_are_the_bases(tmp_path, make_adapters):
    path = write_llama(tmp_path / "base.gguf", quantised="Q4_0")
    export(GGUFFile(path), make_adapters(base=open_base(path)), "Q8_0", tmp_path / "out.gguf", "abc")
    base = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    out = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for name in ("token_embd.weight", "blk.1.attn_q.weight", "output_norm.weight", "blk.0.ffn_norm.weight"):
        assert out[name].tensor_type == base[name].tensor_type
        np.testing.assert_array_equal(out[name].data, base[name].data)
    assert list(out["blk.0.ffn_down_exps.weight"].shape) == [96, 64, 2]
    assert out["blk.0.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert "blk.0.ffn_down.weight" not in out
    metadata = GGUFFile(tmp_path / "out.gguf").metadata
    assert (metadata["llama.expert_count"], metadata["llama.expert_used_count"]) == (2, 2)
    assert metadata[SOURCE_KEY] == "abc"


def test_a_row_that_is_no_whole_block_is_refused_before_anything_is_written(tmp_path, make_adapters):
    path = write_llama(tmp_path / "base.gguf", ff_width=80)
    with pytest.raises(QuantizeError, match=r"rows of 80 weights.*block of 32.*--format F16"):
        export(GGUFFile(path), make_adapters(base=open_base(path)), "Q8_0", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
