"""Random bases in the shape of real ones, for memory and time: the weights mean nothing, sizes and tokenizer are real.

The tokenizer is the default base's; a larger vocabulary is filled up with unused tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from quantize.gguf_file import GGUFFile


@dataclass(frozen=True)
class Kind:
    """A base's hyper-parameters and block format."""

    blocks: int
    width: int
    ff_width: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    format: str


KINDS = {
    "smollm2-360m": Kind(32, 960, 2560, 15, 5, 64, 49152, "Q8_0"),
    "llama-3.2-1b": Kind(16, 2048, 8192, 32, 8, 64, 128256, "Q4_0"),
}


def write(path: Path, kind: Kind) -> Path:
    """Writes a base of this kind."""
    source = GGUFFile(find_base(DEFAULT_BASE)[1])
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_block_count(kind.blocks)
    writer.add_context_length(8192)
    writer.add_embedding_length(kind.width)
    writer.add_feed_forward_length(kind.ff_width)
    writer.add_head_count(kind.heads)
    writer.add_head_count_kv(kind.kv_heads)
    writer.add_rope_dimension_count(kind.head)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    _tokenizer(writer, source.metadata, kind.vocabulary)
    rng = np.random.default_rng(0)
    queries, keys = kind.heads * kind.head, kind.kv_heads * kind.head
    matrices = {
        "attn_q": (queries, kind.width), "attn_k": (keys, kind.width), "attn_v": (keys, kind.width),
        "attn_output": (kind.width, queries), "ffn_gate": (kind.ff_width, kind.width),
        "ffn_up": (kind.ff_width, kind.width), "ffn_down": (kind.width, kind.ff_width),
    }  # fmt: skip
    _matrix(writer, rng, "token_embd.weight", (kind.vocabulary, kind.width), kind.format)
    writer.add_tensor("output_norm.weight", np.ones(kind.width, np.float32))
    for block in range(kind.blocks):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", np.ones(kind.width, np.float32))
        for name, size in matrices.items():
            _matrix(writer, rng, f"blk.{block}.{name}.weight", size, kind.format)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tokenizer(writer: Any, metadata: dict[str, Any], vocabulary: int) -> None:
    tokens = list(metadata["tokenizer.ggml.tokens"])
    types = metadata["tokenizer.ggml.token_type"].tolist()
    missing = vocabulary - len(tokens)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list(tokens + [f"<unused {number}>" for number in range(missing)])
    writer.add_token_types(types + [5] * missing)
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(metadata["tokenizer.chat_template"])


def _matrix(writer: Any, rng: np.random.Generator, name: str, size: tuple[int, int], format_name: str) -> None:
    """Random blocks: one scale for all, about 1 / sqrt(width) in the end."""
    kind, rows, width = gguf.GGMLQuantizationType[format_name], *size
    numbers, spread = (16, 5.0) if format_name == "Q4_0" else (32, 73.0)
    scale = np.full((rows * width // 32, 1), 1 / np.sqrt(width) / spread, np.float16).view(np.uint8)
    values = rng.integers(0, 256, (rows * width // 32, numbers), np.uint8)
    raw = np.concatenate((scale, values), axis=1).reshape(rows, -1)
    writer.add_tensor(name, raw, raw_dtype=kind)
