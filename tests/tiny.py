"""A real GGUF file of the llama family, small: two random layers and a byte-level vocabulary with a ChatML template.

Written with gguf-py, which is not our code, and read by llama.cpp like any other model.
"""

from __future__ import annotations

import functools
from pathlib import Path

import gguf
import numpy as np

TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE with a few merges."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    merges = ["Ġ t", "h e", "i n", "a n", "e r", "Ġt he", "o n", "r e", "Ġ a", "s t"]
    return SPECIALS + letters + ["".join(merge.split()) for merge in merges], merges


def pieces() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a vocabulary like SentencePiece's: bytes, letters and a few words."""
    words = ["▁t", "he", "▁the", "in", "an", "er", "▁a", "st", "on", "re"]
    letters = ["▁", *map(chr, range(ord("!"), ord("~") + 1))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    scores = [0.0] * 259 + [-float(place) for place in range(len(words) + len(letters))]
    return tokens, scores, [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters))


def write_llama(
    path: Path,
    *,
    blocks: int = 2,
    width: int = 64,
    ff_width: int = 96,
    heads: int = 4,
    kv_heads: int = 2,
    seed: int = 0,
    tied: bool = True,
    rope_factors: bool = False,
    bias: bool = False,
    head_norms: bool = False,
    linear_scaling: float | None = None,
    quantised: str | None = None,
    architecture: str = "llama",
    head: int | None = None,
    template: str | None = TEMPLATE,
    add_bos: bool = False,
    alignment: int | None = None,
    pre: str | None = "smollm",
) -> Path:
    """Writes the model; `quantised` names a block format for the matrices (default F32).

    `pre` names how text is split before byte-level merges; None: a vocabulary like SentencePiece's.
    """
    rng = np.random.default_rng(seed)
    head = head or width // heads
    writer = gguf.GGUFWriter(path, architecture)
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_name("tiny")
    writer.add_block_count(blocks)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ff_width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if linear_scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(linear_scaling)
    tokens, merges = vocabulary() if pre else (pieces()[0], [])
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2" if pre else "llama")
    writer.add_tokenizer_pre(pre or "default")
    writer.add_token_list(tokens)
    if pre:
        writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)))
        writer.add_token_merges(merges)
    else:
        writer.add_token_scores(pieces()[1])
        writer.add_token_types(pieces()[2])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(add_bos)
    if template:
        writer.add_chat_template(template)

    def matrix(name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        data = (rng.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype(np.float32)
        if quantised is None:
            writer.add_tensor(name, data)
        else:
            kind = gguf.GGMLQuantizationType[quantised]
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)

    def vector(name: str, size: int, around: float) -> None:
        writer.add_tensor(name, (around + 0.1 * rng.standard_normal(size)).astype(np.float32))

    matrix("token_embd.weight", len(tokens), width, 8.0)
    vector("output_norm.weight", width, 1.0)
    if not tied:
        matrix("output.weight", len(tokens), width, 4.0)
    if rope_factors:
        writer.add_tensor("rope_freqs.weight", rng.uniform(1, 8, head // 2).astype(np.float32))
    for index in range(blocks):
        vector(f"blk.{index}.attn_norm.weight", width, 1.0)
        vector(f"blk.{index}.ffn_norm.weight", width, 1.0)
        sizes = {
            "attn_q": (heads * head, width),
            "attn_k": (kv_heads * head, width),
            "attn_v": (kv_heads * head, width),
            "attn_output": (width, heads * head),
            "ffn_gate": (ff_width, width),
            "ffn_up": (ff_width, width),
            "ffn_down": (width, ff_width),
        }
        for name, (rows, columns) in sizes.items():
            matrix(f"blk.{index}.{name}.weight", rows, columns, 2.0)
            if bias and name in ("attn_q", "attn_k", "attn_v"):
                vector(f"blk.{index}.{name}.bias", rows, 0.0)
        if head_norms:
            vector(f"blk.{index}.attn_q_norm.weight", head, 1.0)
            vector(f"blk.{index}.attn_k_norm.weight", head, 1.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@functools.cache
def some_text(paragraphs: int = 40, seed: int = 0) -> str:
    """Paragraphs of made-up sentences with a pattern that can be learned."""
    rng = np.random.default_rng(seed)
    nouns, verbs = (["the hen", "the train", "a stone", "the inn", "an ant"], ["rests on", "hates", "enters", "then heats"])
    return "\n\n".join(
        " ".join(f"{rng.choice(nouns)} {rng.choice(verbs)} {rng.choice(nouns)} {rng.integers(1000)}." for _ in range(30))
        for _ in range(paragraphs)
    )
