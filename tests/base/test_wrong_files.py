"""Files that are no base: each is told what it is and what to do, before anything is made."""

import contextlib
import gzip
import json
import math
import os
import re
import struct

import gguf
import numpy as np
import pytest
import safetensors.numpy
import torch

from comigs_edge import llamacpp
from comigs_edge.base.catalogue import find_base
from comigs_edge.base.hparams import check_tensors, read_hparams
from comigs_edge.base.parts import is_part, join
from comigs_edge.errors import ComigsError
from quantize import gguf_writer
from quantize.formats import QuantizeError
from quantize.gguf_file import GGUFFile
from tests.conftest import divergence, llama_logits
from tests.tiny import TEMPLATE, write_llama

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 98400000\n"


def write(path, metadata, tensors, architecture="llama"):
    """A GGUF file by gguf-py. Values are text, or (value, method of the writer)."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        getattr(writer, value[1])(key, value[0]) if isinstance(value, tuple) else writer.add_string(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rewritten(path, source, changes=(), parts=None):
    """The model at `source`, by gguf-py, with other metadata; `parts` are the tensors and metadata of each part that is made."""
    reader = gguf.GGUFReader(source)
    paths = [path] if parts is None else [path.with_name(f"{path.stem}-{n + 1:05}-of-{parts:05}.gguf") for n in range(parts)]
    for number, each in enumerate(paths):
        writer = gguf.GGUFWriter(each, "llama")
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name not in {"general.architecture", *dict(changes)}:
                kind = field.types[0]
                sub = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), kind, sub)
        for key, (value, kind) in dict(changes).items():
            if value is not None:
                writer.add_key_value(key, value, kind)
        if parts:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", parts)
            writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number :: len(paths)]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths if parts else path


def replace(path, source, key, value, kind):
    """The model at `source` with one entry of its metadata, also of those that gguf-py's writer keeps for itself."""
    file = GGUFFile(source)
    packed = gguf.GGUFWriter(path, "llama")._pack_val(value, kind, True)
    entries = [source.read_bytes()[start:end] for name, (start, end) in file.metadata_bytes.items() if name != key]
    entries.append(struct.pack("<Q", len(key)) + key.encode() + packed)
    with path.open("wb") as out:
        gguf_writer.write(out, entries, [gguf_writer.plan_copy(file, name) for name in file.tensors])


def without_numbers(path):
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if tensor.name == "output_norm.weight":
            tensor.data[:] = math.nan


def as_bytes(content):
    return lambda path: path.write_bytes(content)


def lora(path):
    tensors = {f"blk.0.attn_q.weight.lora_{part}": np.zeros((8, 64), np.float32) for part in "ab"}
    write(path, {"general.type": "adapter", "adapter.type": "lora"}, tensors)


KIND = gguf.GGUFValueType
ONE = {"a": np.zeros(2, np.float32)}
WRONG = {
    "pointer": (as_bytes(POINTER), "is a Git LFS pointer .* git lfs pull"),
    "page": (as_bytes(b"<!DOCTYPE html>\n<html><title>401</title></html>"), "is a web page: its address was wrong"),
    "zip": (as_bytes(b"PK\x03\x04" + bytes(60)), r"is packed \(zip\); unpack it and name the .gguf file"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(write_llama(path).read_bytes())), r"is packed \(gzip\); unpack it"),
    "PyTorch": (lambda path: torch.save({"a": torch.zeros(2)}, path), "PyTorch's pickles, .* not read; get the model as"),
    "old PyTorch": (
        lambda path: torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False), "is made of PyTorch's pickles"
    ),
    "nothing": (as_bytes(b""), "is empty; get the file again"),
    "half": (
        lambda path: os.truncate(write_llama(path), path.stat().st_size // 2),
        r"is cut short or damaged: it has [\d,]+ of the [\d,]+ bytes that its tensors need; get the file again",
    ),
    "head": (lambda path: os.truncate(write_llama(path), 300), "is cut short or damaged .*; get the file again"),
    "safetensors": (as_bytes(struct.pack("<Q", 60) + b'{"__metadata__":{}}'), "is a safetensors file; name the folder"),
    "big-endian": (as_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0)), "is big-endian"),
    "adapter": (lora, "is a LoRA adapter and not a model"),
    "pictures": (lambda path: write(path, {"general.type": "mmproj"}, {}, "clip"), r"sees pictures \(mmproj\)"),
    "vocabulary": (lambda path: write(path, {}, {}), "holds a vocabulary and no weights"),
    "granite": (
        lambda path: write_llama(path, architecture="granite"),
        "'granite', whose factors on .* are not computed in training; choose a base",
    ),
    "granite of experts": (lambda path: write(path, {}, ONE, "granitemoe"), "which is a mixture of experts already; choose"),
    "granite 4": (lambda path: write(path, {}, ONE, "granitehybrid"), "whose Mamba layers are not computed"),
    "gemma": (lambda path: write(path, {}, ONE, "gemma3"), "runs no exact mixture; choose a base"),
    "no tokenizer rule": (
        lambda path: rewritten(path, write_llama(path.with_suffix(".tmp")), {"tokenizer.ggml.pre": ("qwen99", KIND.STRING)}),
        "unknown pre-tokenizer type: 'qwen99'; nobody could chat with this base",
    ),
    "too few tokens": (
        lambda path: rewritten(path, write_llama(path.with_suffix(".tmp")), {"tokenizer.ggml.tokens": (None, None)}),
        "llama.cpp cannot load .*: .*; nobody could chat",
    ),
    "template": (lambda path: write_llama(path, template="{% for m in messages %}x"), "Unexpected end of template"),
    "refusal": (lambda path: write_llama(path, template="{{ raise_exception('not today') }}"), "refuses this chat: not today"),
    "alignment in words": (
        lambda path: write(path, {"general.alignment": "many"}, ONE),
        "general.alignment is 'many' and no whole number; get the file again",
    ),
    "alignment of nothing": (
        lambda path: write(path, {"general.alignment": (float("nan"), "add_float32")}, ONE),
        "general.alignment is 'nan' and no whole number",
    ),
    "many alignments": (
        lambda path: write(path, {"general.alignment": ([32, 64], "add_array")}, ONE),
        r"general.alignment is '\[32 64\]' and no whole number",
    ),
    "heads": (
        lambda path: replace(path, write_llama(path.with_suffix(".tmp")), "llama.attention.head_count", 0, KIND.UINT32),
        "is damaged: it claims a width of 64 in 0 heads",
    ),
    "short": (
        lambda path: replace(path, write_llama(path.with_suffix(".tmp")), "llama.context_length", 16, KIND.UINT32),
        "reads 16 tokens at once, and at least 32 are needed",
    ),
    "numbers": (lambda path: without_numbers(write_llama(path)), "what it computes are no numbers"),
    "answer": (lambda path: path.write_bytes(b'{"error": "Access to this model is restricted"}' * 9), "JSON and no model"),
    "stretched": (
        lambda path: rewritten(path, write_llama(path.with_suffix(".tmp")), {"llama.rope.scaling.type": ("yarn", KIND.STRING)}),
        "scales RoPE by 'yarn'; .* before its context was extended",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_base_is_named_for_what_it_is(run, home, tmp_path, name):
    make, sentence = WRONG[name]
    make(tmp_path / "wrong.gguf")
    output = run("init", "--base", tmp_path / "wrong.gguf", code=1).output
    assert re.search(sentence, output), output
    assert not home.exists()


ODD = [
    ("many", KIND.STRING), ([1, 2], KIND.ARRAY), (["a"], KIND.ARRAY), (math.nan, KIND.FLOAT32), (math.inf, KIND.FLOAT64),
    (-1, KIND.INT32), (0, KIND.UINT8), (2**64 - 1, KIND.UINT64), (True, KIND.BOOL),
]  # fmt: skip
CONVERTED = [
    "general.alignment", "general.architecture", "general.type", "split.count", "split.no", "split.tensors.count",
    *(f"llama.{name}" for name in (
        "expert_count", "embedding_length", "attention.head_count", "attention.key_length", "attention.value_length",
        "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "block_count", "feed_forward_length",
        "attention.head_count_kv", "rope.dimension_count", "rope.freq_base", "attention.layer_norm_rms_epsilon",
        "context_length",
    )),
]  # fmt: skip


@pytest.mark.parametrize("key", CONVERTED)
def test_an_odd_value_of_a_header_is_a_sentence_or_is_taken(tmp_path, tiny_path, key):
    path = tmp_path / "odd.gguf"
    for value, kind in ODD:
        replace(path, tiny_path, key, value, kind)
        with contextlib.suppress(ComigsError, QuantizeError):
            if is_part(path):
                join(path, tmp_path / "joined.gguf")
            else:
                check_tensors(file := GGUFFile(path), read_hparams(file))


@pytest.mark.parametrize(("ready", "architecture"), [("lora", "llama"), ("parallel", "granitemoe")], indirect=["ready"])
def test_a_personal_model_is_no_base_and_is_called_what_it_is(ready, run, tmp_path, architecture):
    run("train", "--steps", 2)
    run("export", "--output", tmp_path / "mine.gguf")
    assert gguf.GGUFReader(tmp_path / "mine.gguf").get_field("general.architecture").contents() == architecture
    output = run("init", "--force", "--base", tmp_path / "mine.gguf", code=1).output
    assert "mine.gguf is a personal model that comigs-edge made of a base; name that base" in output


def test_a_format_that_is_not_read_is_called_by_its_name(run, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((1, 110), np.uint8), raw_dtype=gguf.GGMLQuantizationType.IQ3_S)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert (
        "as IQ3_S, which is not supported; get the model in Q4_K_M"
        in run("init", "--base", tmp_path / "small.gguf", code=1).output
    )


def test_a_model_in_parts_is_joined_and_answers_as_the_whole(run, home, tmp_path, tiny_path):
    parts = rewritten(tmp_path / "model.gguf", tiny_path, parts=3)
    run("init", "--base", parts[1])
    assert 'name = "model"' in (home / "config.toml").read_text()
    ids = [5, 9, 30, 41, 7]
    assert divergence(llama_logits(tiny_path, ids), llama_logits(home / "base.gguf", ids)) == 0
    parts[2].unlink()
    output = run("init", "--force", "--base", parts[0], code=1).output
    assert "model-00003-of-00003.gguf is missing beside it; get all parts" in output


def test_a_base_that_says_nothing_odd_is_not_commented_on(run, tmp_path):
    assert "warning" not in run("init", "--base", write_llama(tmp_path / "good.gguf")).output


@pytest.mark.parametrize(
    ("template", "warning"),
    [
        (TEMPLATE.replace("<|im_end|>", "<|eot_id|>"), "ends an answer with <|eot_id|>, which its vocabulary lacks"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}", "may go on as far as max_tokens"),
    ],
)
def test_how_answers_end_is_said_where_it_is_not_the_templates_way(run, tmp_path, template, warning):
    assert warning in run("init", "--base", write_llama(tmp_path / "odd.gguf", template=template)).output


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"llama.rope.scaling.factor": (4.0, KIND.FLOAT32)}, 0.25),
        ({"llama.rope.scale_linear": (4.0, KIND.FLOAT32)}, 0.25),
        ({"llama.rope.scaling.factor": (4.0, KIND.FLOAT32), "llama.rope.scaling.type": ("none", KIND.STRING)}, 1.0),
    ],
)
def test_positions_are_scaled_as_llama_cpp_scales_them(tmp_path, tiny_path, changes, scale):
    import torch

    from comigs_edge.nn.model import Model
    from comigs_edge.nn.weights import open_base

    path = rewritten(tmp_path / "scaled.gguf", tiny_path, changes)
    assert read_hparams(GGUFFile(path)).rope_scale == scale
    ids = list(range(5, 45))
    model = Model(open_base(path), None)
    with torch.no_grad():
        found = model.logits(model(torch.tensor([ids])).hidden)
    assert divergence(llama_logits(path, ids), found) < 1e-8


def folder(path, **config):
    """A Hugging Face folder as far as its settings."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(
        json.dumps({"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 1} | config)
    )
    return path


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_a_quantised_folder_is_named_by_its_method(run, tmp_path, method):
    base = folder(tmp_path / "model", quantization_config={"quant_method": method})
    assert f"is quantised with {method}, which is not read" in run("init", "--base", base, code=1).output


def test_an_adapters_folder_names_the_base_that_it_belongs_to(run, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/model"}))
    output = run("init", "--base", tmp_path, code=1).output
    assert "holds an adapter of org/model and not a model; merge the two" in output


def test_a_pointer_in_a_folder_is_named_too(run, tmp_path):
    base = folder(tmp_path / "model")
    (base / "model.safetensors").write_bytes(POINTER)
    assert "model.safetensors is a Git LFS pointer" in run("init", "--base", base, code=1).output


def test_a_shard_that_is_missing_without_an_index_is_named(run, tmp_path):
    base = folder(tmp_path / "model")
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, base / "model-00001-of-00002.safetensors")
    assert "lacks model-00002-of-00002.safetensors" in run("init", "--base", base, code=1).output


def test_a_base_in_the_hugging_face_cache_has_its_repositorys_name(tmp_path):
    cache = tmp_path / "models--org--small-model"
    snapshot = folder(cache / "snapshots" / ("f" * 40))
    assert find_base(str(snapshot)) == ("small-model", snapshot)
    assert find_base(str(cache)) == ("small-model", snapshot)
    newer = folder(cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    assert find_base(str(cache)) == ("small-model", newer)


def test_llama_cpps_own_reason_is_in_the_message(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(4))
    with pytest.raises(llamacpp.ComigsError, match=r"broken.gguf: (?!Failed to load)"):
        llamacpp.load(path)


def test_a_pipe_is_no_base_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "base.gguf")
    for path in (tmp_path / "base.gguf", "/dev/zero"):
        with pytest.raises(ComigsError, match=r"is no ordinary file; name a \.gguf file or a Hugging Face folder"):
            find_base(str(path))


def test_a_base_that_does_not_say_how_text_is_split_is_warned_of(run, tmp_path, tiny_path):
    silent = rewritten(tmp_path / "silent.gguf", tiny_path, {"tokenizer.ggml.pre": (None, None)})
    assert "tokenizer.ggml.pre is missing" in run("init", "--base", silent).output
    assert "tokenizer.ggml.pre" not in run("init", "--force", "--base", tiny_path).output
