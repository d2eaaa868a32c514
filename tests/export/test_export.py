"""The exported file, run by unmodified llama.cpp and read by gguf-py."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from comigs_edge import files, llamacpp
from comigs_edge.errors import ComigsError
from comigs_edge.export import hot
from comigs_edge.export.current import HOT_PARTS, SOURCE_KEY
from comigs_edge.export.merged import Origin, export, planned_size
from comigs_edge.export.replace import replace_experts
from comigs_edge.home.config import FORMATS_TO_EXPORT, TRAINABLE
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import open_base
from quantize.formats import QuantizeError
from quantize.gguf_file import GGUFFile
from tests.conftest import converted, divergence, llama_logits
from tests.tiny import TEMPLATE, write_llama

IDS = torch.randint(3, 260, (120,), generator=torch.Generator().manual_seed(2)).tolist()


BASES = {
    "llama": {},
    "llama Q4_1": {"quantised": "Q4_1"},
    "llama, rope factors": {"rope_factors": True},
    "llama, untied": {"tied": False},
    "qwen2": {"architecture": "qwen2", "bias": True},
    "qwen3": {"architecture": "qwen3", "head_norms": True, "head": 32},
}
LARGE_BLOCKS = [name for name in FORMATS_TO_EXPORT if name[0] == "I" or name.endswith("_K")]  # gguf-py cannot quantise to these
MIXTURES = [(0, 1, False), (1, 2, True), (2, 3, False), (3, 2, True)]


def torch_logits(base, adapters, block_format=None):
    model = Model(base, adapters)
    model.block_format = block_format
    with torch.no_grad():
        return model.logits(model(torch.tensor([IDS])).hidden)


def first_input(base, block, ids):
    """What the router of a block reads in the bare base, (D,)."""
    adapters, read = Adapters.initial(ExpertsConfig(1), base.hparams, 0), []
    model = Model(base, adapters)
    model.watch = lambda number, normed, routing: read.append(normed[0])
    with torch.no_grad():
        model(torch.tensor([ids]))
    return read[block]


def exact(expected, logits, base):
    assert divergence(expected, logits) < 1e-8
    assert (expected.argmax(-1) == logits.argmax(-1)).all()
    assert divergence(torch_logits(base, None), logits) > 1e-2  # the adapters do change something


@pytest.mark.parametrize("form", ["lora", "parallel"])
@pytest.mark.parametrize("options", BASES.values(), ids=BASES.keys())
@pytest.mark.parametrize(("specialists", "k", "attention"), MIXTURES)
def test_exported_mixture_equals_torch_in_llama_cpp(tmp_path, make_adapters, specialists, k, attention, options, form):
    path = write_llama(tmp_path / "base.gguf", **options)
    base = open_base(path)
    adapters = make_adapters(specialists, k, attention, base, form)
    if form == "parallel" and options.get("head_norms"):
        with pytest.raises(ComigsError, match=r"no architecture for parallel experts beside a qwen3 base; .*--expert-form lora"):
            export(GGUFFile(path), adapters, "F32", tmp_path / "out.gguf")
        return
    export(GGUFFile(path), adapters, "F32", tmp_path / "out.gguf")
    exact(llama_logits(tmp_path / "out.gguf", IDS), torch_logits(base, adapters), base)


@pytest.mark.parametrize("name", ["F32", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize(("specialists", "k", "blocks"), [(0, 2, 0), (1, 2, 0), (1, 3, 0), (2, 2, 1)])
def test_a_zero_expert_in_llama_cpp_equals_torch(tmp_path, tiny_path, tiny_base, make_adapters, specialists, k, blocks, name):
    adapters = make_adapters(specialists, k, form="parallel", blocks=blocks, zero=True)
    export(GGUFFile(tiny_path), adapters, name, tmp_path / "out.gguf")
    found, expected = llama_logits(tmp_path / "out.gguf", IDS), torch_logits(tiny_base, adapters, None if name == "F32" else name)
    if name == "F32":
        exact(found, expected, tiny_base)
    assert divergence(expected, found) < 0.02  # llama.cpp rounds what a layer reads to 8 bits
    file = GGUFFile(tmp_path / "out.gguf")
    assert file.metadata["granitemoe.expert_count"] == specialists + 2
    for part in ("gate", "up", "down"):
        assert not file.dequantize(f"blk.1.ffn_{part}_exps.weight")[-1].any()


@pytest.mark.parametrize("name", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize(("specialists", "k", "blocks"), [(0, 2, 0), (1, 2, 0), (1, 3, 0), (2, 2, 1)])
def test_beside_lora_experts_the_zero_expert_is_the_mlp_of_the_base(
    tmp_path, tiny_path, tiny_base, make_adapters, specialists, k, blocks, name
):
    adapters = make_adapters(specialists, k, blocks=blocks, zero=True)
    export(GGUFFile(tiny_path), adapters, name, tmp_path / "out.gguf")
    found, expected = llama_logits(tmp_path / "out.gguf", IDS), torch_logits(tiny_base, adapters, None if name == "F32" else name)
    if name == "F32":
        exact(found, expected, tiny_base)
    assert divergence(expected, found) < 0.02  # llama.cpp rounds what a layer reads to 8 bits
    file, base = GGUFFile(tmp_path / "out.gguf"), GGUFFile(tiny_path)
    assert file.metadata["llama.expert_count"] == specialists + 2
    for part in ("gate", "up", "down"):
        theirs = base.dequantize(f"blk.1.ffn_{part}.weight")
        kept = gguf.quants.quantize(theirs, gguf.GGMLQuantizationType[name])
        kept = gguf.quants.dequantize(kept, gguf.GGMLQuantizationType[name])
        assert np.array_equal(file.dequantize(f"blk.1.ffn_{part}_exps.weight")[-1], kept)


@pytest.mark.parametrize("form", ["lora", "parallel"])
@pytest.mark.parametrize("specialists", [0, 1])
def test_where_the_zero_expert_speaks_alone_llama_cpp_computes_the_base(
    tmp_path, tiny_path, tiny_base, make_adapters, specialists, form
):
    adapters = make_adapters(specialists, 2, form=form, zero=True)
    token = [50]
    for block, router in enumerate(adapters.routers):
        router.zero_()[-1] = 100 * first_input(tiny_base, block, token)
    export(GGUFFile(tiny_path), adapters, "F32", tmp_path / "out.gguf")
    with torch.no_grad():
        base = Model(tiny_base, None)
        expected = base.logits(base(torch.tensor([token])).hidden).double()
    torch.testing.assert_close(llama_logits(tmp_path / "out.gguf", token), expected, atol=1e-4, rtol=1e-4)


def test_a_zero_expert_costs_the_bytes_of_one_expert_and_of_its_rows_in_the_routers(tmp_path, tiny_path, make_adapters):
    sizes = [planned_size(GGUFFile(tiny_path), make_adapters(1, form="parallel", zero=zero), "Q8_0") for zero in (False, True)]
    one_expert, row = 3 * 32 * 64 * 34 // 32, 4 * 64
    assert sizes[1] - sizes[0] == 2 * (one_expert + row)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("options", BASES.values(), ids=BASES.keys())
@pytest.mark.parametrize(("specialists", "k", "attention"), MIXTURES)
def test_the_layout_hot_equals_torch_in_llama_cpp(tmp_path, make_adapters, specialists, k, attention, options, zero):
    path = write_llama(tmp_path / "base.gguf", **options)
    base = open_base(path)
    adapters = make_adapters(specialists, max(2, k) if zero else k, attention, base, zero=zero)
    file = GGUFFile(path)
    hot.write_base(file, adapters, "F32", tmp_path / "hot.gguf")
    paths = [tmp_path / f"{part}.gguf" for part in HOT_PARTS[: 1 + (specialists > 0 or zero)]]
    for part, target in zip(HOT_PARTS, paths, strict=False):
        hot.write_adapter(file, adapters, part, "F32", target, "abc")
    exact(llama_logits(tmp_path / "hot.gguf", IDS, paths), torch_logits(base, adapters), base)


@pytest.mark.parametrize("layout", ["lora", "parallel", "hot"])
@pytest.mark.parametrize("options", [{}, {"architecture": "qwen2", "bias": True, "quantised": "Q4_1"}], ids=["llama", "qwen2"])
@pytest.mark.parametrize(("specialists", "k", "attention"), MIXTURES)
def test_experts_in_the_last_blocks_alone_equal_torch(tmp_path, make_adapters, specialists, k, attention, options, layout):
    """llama.cpp wants a router and experts in every block; where there are none they must change nothing."""
    path = write_llama(tmp_path / "base.gguf", blocks=3, **options)
    base, file, paths = open_base(path), GGUFFile(path), []
    form = "lora" if layout == "hot" else layout
    adapters = make_adapters(specialists, k, attention, base, form, blocks=2)
    assert {name.split(".blk.")[1][0] for name in adapters.named} == {"1", "2"}
    if layout == "hot":
        paths = [tmp_path / f"{part}.gguf" for part in HOT_PARTS[: 1 + (specialists > 0)]]
        hot.write_base(file, adapters, "F32", tmp_path / "out.gguf")
        for part, target in zip(HOT_PARTS, paths, strict=False):
            hot.write_adapter(file, adapters, part, "F32", target, "abc")
    else:
        export(file, adapters, "F32", tmp_path / "out.gguf")
    exact(llama_logits(tmp_path / "out.gguf", IDS, paths), torch_logits(base, adapters), base)


def test_a_block_without_experts_keeps_the_bases_bytes_when_it_is_merged(tmp_path, make_adapters):
    path = write_llama(tmp_path / "base.gguf", quantised="Q4_1")
    export(GGUFFile(path), make_adapters(base=open_base(path), blocks=1), "Q8_0", tmp_path / "out.gguf")
    base, out = GGUFFile(path), GGUFFile(tmp_path / "out.gguf")
    np.testing.assert_array_equal(out.raw("blk.0.ffn_up_exps.weight"), np.tile(base.raw("blk.0.ffn_up.weight"), 2))
    assert out.tensors["blk.1.ffn_up_exps.weight"].format.name == "Q8_0"


@pytest.mark.parametrize("form", ["lora", "parallel"])
@pytest.mark.parametrize("name", TRAINABLE)
def test_training_computes_in_the_weights_of_the_exported_file(tmp_path, make_adapters, form, name):
    """The file's tensors, dequantised by llama.cpp and written out as F32, give the fake-quantised forward pass of torch."""
    path = write_llama(tmp_path / "base.gguf")
    base, adapters = open_base(path), make_adapters(2, 2, form == "lora", form=form)
    export(GGUFFile(path), adapters, name, tmp_path / "out.gguf")
    converted(tmp_path / "out.gguf", "F32", tmp_path / "f32.gguf")
    exact(llama_logits(tmp_path / "f32.gguf", IDS), torch_logits(base, adapters, name), base)


@pytest.mark.parametrize("format_name", [name for name in FORMATS_TO_EXPORT if name not in LARGE_BLOCKS])
def test_every_format_holds_gguf_pys_quantisation_of_the_merged_weights(tmp_path, tiny_path, make_adapters, format_name):
    adapters = make_adapters()
    export(GGUFFile(tiny_path), adapters, format_name, tmp_path / "out.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    kind = gguf.GGMLQuantizationType[format_name]
    for index, name in enumerate(("ffn_gate", "ffn_up", "ffn_down")):
        weight = torch.from_numpy(GGUFFile(tiny_path).dequantize(f"blk.1.{name}.weight"))
        loras = [expert[index] for expert in adapters.experts[1]]
        merged = torch.stack([weight + adapters.layout.scale * (lora.b @ lora.a) for lora in loras]).numpy()
        weights = gguf.quants.dequantize(tensors[f"blk.1.{name}_exps.weight"].data, kind)
        expected = gguf.quants.dequantize(gguf.quants.quantize(merged, kind), kind)
        assert tensors[f"blk.1.{name}_exps.weight"].tensor_type == kind
        # The two merges may differ in a last bit, which can move a weight that lies between two levels to the other one.
        assert (np.abs(weights - expected) < 1e-5).mean() > 0.999
    assert torch.isfinite(llama_logits(tmp_path / "out.gguf", IDS)).all()


@pytest.mark.parametrize(("format_name", "limit"), [("F16", 1e-3), ("Q8_0", 0.02)])
def test_formats_of_8_bits_and_more_stay_near_the_mixture(tmp_path, tiny_path, tiny_base, make_adapters, format_name, limit):
    adapters = make_adapters()
    export(GGUFFile(tiny_path), adapters, format_name, tmp_path / "out.gguf")
    assert divergence(torch_logits(tiny_base, adapters), llama_logits(tmp_path / "out.gguf", IDS)) < limit


def test_gguf_py_reads_the_same_tensors_and_untouched_bytes_are_the_bases(tmp_path, make_adapters):
    path = write_llama(tmp_path / "base.gguf", quantised="Q4_0")
    export(GGUFFile(path), make_adapters(base=open_base(path)), "Q8_0", tmp_path / "out.gguf", Origin("abc"))
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


@pytest.mark.parametrize("format_name", LARGE_BLOCKS)
def test_formats_of_large_blocks_are_llama_cpps_own_with_its_fallbacks(tmp_path, make_adapters, format_name):
    """Width 256 and 288: the rows of down are no whole blocks of 256. llama.cpp's quantiser makes the file to compare with."""
    path = write_llama(tmp_path / "base.gguf", width=256, ff_width=288)
    adapters = make_adapters(base=open_base(path))
    exported = export(GGUFFile(path), adapters, format_name, tmp_path / "out.gguf", threads=2)
    export(GGUFFile(path), adapters, "F32", tmp_path / "f32.gguf")
    converted(tmp_path / "f32.gguf", format_name, tmp_path / "theirs.gguf")
    ours, theirs = GGUFFile(tmp_path / "out.gguf"), GGUFFile(tmp_path / "theirs.gguf")
    for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        tensor = f"blk.1.{name}.weight"
        assert ours.tensors[tensor].format == theirs.tensors[tensor].format
        assert (ours.raw(tensor) == theirs.raw(tensor)).mean() > 0.999
    fallback = ours.tensors["blk.0.ffn_down_exps.weight"].format.name
    assert exported.formats == ({format_name: 6} if fallback == format_name else {format_name: 4, fallback: 2})
    assert torch.isfinite(llama_logits(tmp_path / "out.gguf", IDS)).all()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_a_parallel_file_keeps_every_byte_of_the_base(tmp_path, make_adapters, name):
    path = write_llama(tmp_path / "base.gguf", quantised="Q4_1")
    export(GGUFFile(path), make_adapters(base=open_base(path), form="parallel"), name, tmp_path / "out.gguf")
    base, out = GGUFFile(path), GGUFFile(tmp_path / "out.gguf")
    for tensor in base.tensors:
        renamed = tensor.replace(".weight", "_shexp.weight") if ".ffn_" in tensor and "norm" not in tensor else tensor
        assert out.tensors[renamed].format == base.tensors[tensor].format
        np.testing.assert_array_equal(out.raw(renamed), base.raw(tensor))
    assert out.tensors["blk.0.ffn_down_exps.weight"].shape == (2, 64, 32)


def test_new_experts_in_an_old_file_are_the_bytes_of_a_new_export(tmp_path, make_adapters):
    path = write_llama(tmp_path / "base.gguf", quantised="Q4_1")
    file, adapters = GGUFFile(path), make_adapters(base=open_base(path), form="parallel")
    export(file, adapters, "Q8_0", tmp_path / "old.gguf", Origin("a" * 64, "base"))
    for tensor in adapters.named.values():
        tensor.mul_(1.5)
    replaced = replace_experts(tmp_path / "old.gguf", file, adapters, "Q8_0", tmp_path / "new.gguf", Origin("b" * 64, "base"))
    fresh = export(file, adapters, "Q8_0", tmp_path / "fresh.gguf", Origin("b" * 64, "base"))
    assert replaced.sha256 == fresh.sha256
    assert not (tmp_path / "old.gguf").exists()
    # Experts in the last block alone leave nothing of the others behind.
    last = make_adapters(base=open_base(path), form="parallel", blocks=1)
    origin = Origin("d" * 64, "base")
    replaced = replace_experts(tmp_path / "new.gguf", file, last, "Q8_0", tmp_path / "last.gguf", origin)
    assert replaced.sha256 == export(file, last, "Q8_0", tmp_path / "fresh.gguf", origin).sha256
    replace_experts(tmp_path / "last.gguf", file, adapters, "Q8_0", tmp_path / "new.gguf", Origin("b" * 64, "base"))
    assert export(file, adapters, "Q8_0", tmp_path / "fresh.gguf", Origin("b" * 64, "base")).sha256 == fresh.sha256
    # Another number of experts does not fit: nothing is touched.
    other = make_adapters(specialists=2, base=open_base(path), form="parallel")
    assert replace_experts(tmp_path / "new.gguf", file, other, "Q8_0", tmp_path / "x.gguf", Origin("c" * 64, "base")) is None
    # Nor do another base whose tensors look alike, or another number of experts a token.
    assert replace_experts(tmp_path / "new.gguf", file, adapters, "Q8_0", tmp_path / "x.gguf", Origin("c" * 64, "other")) is None
    adapters.layout = replace(adapters.layout, experts_per_token=1)
    assert replace_experts(tmp_path / "new.gguf", file, adapters, "Q8_0", tmp_path / "x.gguf", Origin("c" * 64, "base")) is None
    assert (tmp_path / "new.gguf").read_bytes() == (tmp_path / "fresh.gguf").read_bytes()


def test_a_replacement_that_is_cut_off_leaves_a_file_that_names_no_adapters(tmp_path, make_adapters, monkeypatch):
    path = write_llama(tmp_path / "base.gguf")
    file, adapters = GGUFFile(path), make_adapters(form="parallel")
    export(file, adapters, "Q8_0", tmp_path / "old.gguf", Origin("a" * 64, "base"))
    real, calls = files.write_at, []

    def cut_off(target, pieces):
        calls.append(pieces)
        if len(calls) == 2:
            real(target, pieces[:3])
            raise KeyboardInterrupt
        real(target, pieces)

    monkeypatch.setattr(files, "write_at", cut_off)
    with pytest.raises(KeyboardInterrupt):
        replace_experts(tmp_path / "old.gguf", file, adapters, "Q8_0", tmp_path / "new.gguf", Origin("b" * 64, "base"))
    assert GGUFFile(tmp_path / "old.gguf").metadata[SOURCE_KEY] == "-" * 64


def test_swapping_adapters_while_a_model_is_loaded_gives_what_a_new_start_gives(tmp_path, make_adapters):
    path = write_llama(tmp_path / "base.gguf")
    file, adapters = GGUFFile(path), make_adapters()
    hot.write_base(file, adapters, "F16", tmp_path / "hot.gguf")
    for name in ("one", "two"):
        hot.write_adapter(file, adapters, "generalist", "F16", tmp_path / f"{name}.gguf", "")
        adapters.experts[0][0].gate.a.mul_(-1)
    hot.write_adapter(file, adapters, "specialists", "F16", tmp_path / "s.gguf", "")
    llama = llamacpp.load(tmp_path / "hot.gguf", n_ctx=512, n_batch=512, logits_all=True, n_threads=1)
    loaded, logits = llamacpp.LoadedAdapters(llama), []
    for name in ("one", "two", "one"):
        loaded.use((tmp_path / f"{name}.gguf", tmp_path / "s.gguf"))
        llama.eval(IDS)
        logits.append(llama.scores[: len(IDS)].copy())
    assert (logits[0] == logits[2]).all()
    assert np.abs(logits[0] - logits[1]).max() > 0.01


def test_a_base_of_odd_alignment_and_without_a_template_is_exported_as_it_is_chatted_with(tmp_path, make_adapters):
    template = TEMPLATE.replace("<|im_end|>", "<|eot_id|>")  # a token that the tiny vocabulary lacks
    path = write_llama(tmp_path / "base.gguf", template=template, alignment=8)
    base = open_base(path)
    export(GGUFFile(path), make_adapters(base=base, form="parallel"), "Q8_0", tmp_path / "out.gguf")
    exported = GGUFFile(tmp_path / "out.gguf")
    assert exported.alignment == 32
    assert exported.metadata["tokenizer.chat_template"] == TEMPLATE
    assert llama_logits(tmp_path / "out.gguf", [5, 9, 30]).isfinite().all()
