"""A Hugging Face folder (config.json, *.safetensors, tokenizer) becomes a base: one GGUF file.

Covered:     the llama family (model types llama, mistral, qwen2, qwen3), sharded safetensors, float16, bfloat16 and float32.
Not covered: pickle files (they can run code), quantised checkpoints, RoPE scaling other than linear and llama3.

Tensors are converted one at a time, so the memory needed is that of the largest. Matrices are stored in the format that is
asked for, embedding and output in Q8_0 below 8 bits, vectors as float32, as llama.cpp's own converter and quantiser do.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from comigs_edge import files
from comigs_edge.base.catalogue import base_name
from comigs_edge.base.convert_tokenizer import add_tokenizer
from comigs_edge.base.hparams import why_not
from comigs_edge.base.parts import numbered
from comigs_edge.errors import ComigsError
from comigs_edge.progress import SILENT, Progress
from quantize import ggml
from quantize.formats import FILE_TYPES, FORMATS, BlockFormat, block_format, fit_format
from quantize.ggml import Floats
from quantize.gguf_file import FOREIGN, foreign_kind

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


@dataclass(frozen=True)
class _Tensor:
    """One tensor to write: where it comes from, and how its rows are ordered."""

    name: str  # GGUF's
    source: str  # Hugging Face's
    shard: Path
    shape: tuple[int, ...]
    format: BlockFormat
    heads: int  # of a query or key whose rows go into llama's order for RoPE; 0: as they are

    @property
    def row(self) -> int:
        """Bytes of a row in the file."""
        return self.format.row_bytes(self.shape[-1])

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape[:-1]) * self.row


def convert(folder: Path, output: Path, format_name: str, progress: Progress = SILENT) -> None:
    """Writes the base in `folder` to `output`, whole or not at all.

    Raises `ComigsError`, before anything is written, for a folder that is damaged or not a model of the llama family.
    """
    try:
        _convert(folder, output, format_name, progress)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise ComigsError(f"{folder} is damaged or incomplete ({type(error).__name__}: {error}); get the folder again") from error


def _convert(folder: Path, output: Path, format_name: str, progress: Progress) -> None:
    config = _config(folder)
    fmt, architecture = block_format(format_name), _architecture(config, folder)
    factors = _rope_factors(config, folder)
    tensors = _tensors(folder, config, architecture, fmt)
    embedding = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None:
        raise ComigsError(f"{folder} has no token embedding; get the whole folder again")
    if not config.get("tie_word_embeddings") and not any(tensor.name == "output.weight" for tensor in tensors):
        raise ComigsError(
            f"{folder} has no lm_head.weight, and its config.json does not say that it is tied; get the whole folder"
        )
    words = sum(path.stat().st_size for path in folder.glob("tokenizer*"))  # the GGUF's own take about as much
    with files.atomic_writer(output, words + sum(tensor.size for tensor in tensors)) as file:
        writer = gguf.GGUFWriter(Path(file.name), architecture)
        _add_metadata(writer, config, folder, fmt)
        add_tokenizer(writer, folder, embedding.shape[0])
        _write(writer, tensors, factors, progress)


def architecture_of(folder: Path) -> str:
    """The architecture that the base will have; raises `ComigsError` if the folder cannot be converted."""
    return _architecture(_config(folder), folder)


def _config(folder: Path) -> dict[str, Any]:
    adapter = folder / "adapter_config.json"
    if adapter.exists() and not (folder / "config.json").exists():
        try:
            base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError):
            base = "its base"
        raise ComigsError(
            f"{folder} holds an adapter of {base} and not a model; merge the two (merge_and_unload of PEFT) and name the "
            "folder that it saves, or take the base alone"
        )
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ComigsError(f"{folder} is no Hugging Face model: {_what_is_there(folder)}") from None
    except (OSError, ValueError, TypeError) as error:
        raise ComigsError(
            f"{folder} is no Hugging Face model: config.json cannot be read ({error}); name a folder that has one, or a "
            ".gguf file"
        ) from error


def _what_is_there(folder: Path) -> str:
    """What a folder without a config.json holds, and what to do."""
    if not (names := sorted(path.name for path in folder.iterdir())):
        return "it is empty; download the model into it, or name a .gguf file"
    if models := [name for name in names if name.lower().endswith(".gguf")]:
        return f"it holds {', '.join(models[:3])}; name that file and not its folder"
    return "it has no config.json; name a folder that has one beside its .safetensors, or a .gguf file"


def _architecture(config: dict[str, Any], folder: Path) -> str:
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ComigsError(f"{folder} holds a model of type {kind!r}, {why_not(kind)}")
    if quantised := config.get("quantization_config"):
        raise ComigsError(
            f"{folder} is quantised with {quantised.get('quant_method', 'a method that is not known')}, which is not read; name "
            "the folder of the unquantised model, or a .gguf file of it"
        )
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise ComigsError(f"{folder}: an MLP without biases and with silu is supported; choose another base")
    return ARCHITECTURES[kind]


def _head_width(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of RoPE, which newer files keep in one place and older ones in two."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = rope.pop("type", "linear" if "factor" in rope else "default")
    return {"rope_theta": config.get("rope_theta") or 10000.0, "rope_type": kind} | rope


def _rope_factors(config: dict[str, Any], folder: Path) -> Floats | None:
    """What divides the rotation frequencies in Llama 3.1 and later, (head / 2,); raises for a scaling that is not known."""
    rope = _rope(config)
    if rope["rope_type"] in ("default", "linear"):
        return None
    if rope["rope_type"] != "llama3":
        raise ComigsError(f"{folder} scales RoPE by {rope['rope_type']!r}; default, linear and llama3 are supported")
    width = _head_width(config)
    waves = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, width, 2, dtype=np.float64) / width)
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((context / waves - low) / (high - low), 0, 1)  # 1: short waves, which stay; 0: long ones
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)


def _add_metadata(writer: gguf.GGUFWriter, config: dict[str, Any], folder: Path, fmt: BlockFormat) -> None:
    rope, width = _rope(config), _head_width(config)
    heads = int(config["num_attention_heads"])
    writer.add_name(base_name(folder.absolute()))
    writer.add_block_count(int(config["num_hidden_layers"]))
    # A window that slides over the text is exact as far as the window.
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    longest = int(config.get("max_position_embeddings", 2048))
    writer.add_context_length(min(longest, int(window)) if window else longest)
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_file_type(FILE_TYPES[fmt.name])


def _tensors(folder: Path, config: dict[str, Any], architecture: str, fmt: BlockFormat) -> list[_Tensor]:
    names = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture), int(config["num_hidden_layers"])
    )
    heads = int(config["num_attention_heads"])
    reordered = {"attn_q": heads, "attn_k": int(config.get("num_key_value_heads") or heads)}
    tensors = []
    for shard in _shards(folder):
        for source, shape in _contents(shard):
            if source.endswith("rotary_emb.inv_freq") or (source == "lm_head.weight" and config.get("tie_word_embeddings")):
                continue
            name = names.get_name(source, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise ComigsError(f"{shard} has the tensor {source}, which {architecture} does not use; choose another base")
            order = reordered.get(name.split(".")[-2], 0) if architecture == "llama" else 0
            tensors.append(_Tensor(name, source, shard, shape, _format(name, shape, fmt), order))
    return tensors


def _contents(shard: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors in one file."""
    try:
        with safe_open(shard, framework="pt") as file:
            return [(name, tuple(file.get_slice(name).get_shape())) for name in sorted(file.keys())]
    except (SafetensorError, OSError) as error:
        with shard.open("rb") as raw:
            known = foreign_kind(raw.read(FOREIGN))
        raise ComigsError(f"{shard} is {known or f'damaged or cut short ({error}); get the file again'}") from error


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ComigsError(f"{index} cannot be read ({error}); get the file again") from error
        shards = [folder / Path(name).name for name in names]
        missing = [shard.name for shard in shards if not shard.exists()]
        if missing:
            raise ComigsError(f"{folder} lacks {', '.join(missing)}; get the whole folder")
        return shards
    # Beside the model may lie an adapter, or the same weights once more as their makers keep them.
    beside = ("adapter_", "consolidated")
    shards = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith(beside)]
    _check_numbers(shards)
    if not shards:
        pickled = " (pickle files can run code and are not read)" if list(folder.glob("*.bin")) else ""
        raise ComigsError(f"{folder} has no .safetensors file{pickled}; get the model's safetensors")
    return shards


def _check_numbers(shards: list[Path]) -> None:
    """Raises `ComigsError` where the names tell that shards are missing."""
    there = {shard.name for shard in shards}
    if missing := sorted({part for name in there for part in numbered(name)} - there):
        raise ComigsError(f"{shards[0].parent} lacks {', '.join(missing)}; get the whole folder")


def _format(name: str, shape: tuple[int, ...], fmt: BlockFormat) -> BlockFormat:
    if len(shape) == 1:
        return FORMATS["F32"]
    if name in ("token_embd.weight", "output.weight") and fmt.name not in ("F32", "F16", "BF16"):
        fmt = FORMATS["Q8_0"]
    return FORMATS["F16"] if shape[-1] % 32 and fmt.block > 1 else fit_format(name, shape[-1], fmt)


def _write(writer: gguf.GGUFWriter, tensors: list[_Tensor], factors: Floats | None, progress: Progress) -> None:
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType(tensor.format.type_id)
        writer.add_tensor_info(tensor.name, (*tensor.shape[:-1], tensor.row), np.dtype(np.uint8), tensor.size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for number, tensor in enumerate(tensors, 1):
        writer.write_tensor_data(ggml.quantize(tensor.name, _weights(tensor), tensor.format, threads=2))
        progress(number, len(tensors))
    writer.close()


def _weights(tensor: _Tensor) -> Floats:
    with safe_open(tensor.shard, framework="pt") as file:
        weights: torch.Tensor = file.get_tensor(tensor.source).float()
    if tensor.heads:  # row j and row j + head / 2 of a head become neighbours
        weights = weights.unflatten(0, (tensor.heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(weights.numpy())
