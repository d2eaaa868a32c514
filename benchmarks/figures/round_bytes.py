"""Bytes that a device sends in one round, on the wire format itself, against the paper's arithmetic (arXiv:2409.13931, table 3).

    python -m benchmarks.figures.round_bytes

The paper compares one generalist with a FedAvg of the same number of weights, so of twice the rank, and counts the MLP's experts
only: half. Its code also averages the attention's low-rank update: then 61.5 % for GPT-2. Here both are encoded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.common import result_file, write_json
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.base.hparams import HParams, read_hparams
from comigs_edge.nn.experts import FORMS, ExpertsConfig, generalist_shapes
from coordinator.protocol import compress, rounds, wire
from quantize.gguf_file import GGUFFile

LLAMA_1B = HParams("llama", 16, 2048, 8192, 32, 8, 64, 64, 500000.0, 1.0, 1e-5, 128256, 131072)
# GPT-2 small, as the paper has it: low-rank updates of rank 8 on two MLP matrices and on two of the attention, 12 blocks.
GPT2 = {f"generalist.blk.{block}.{name}": shape for block in range(12) for name, shape in (
    ("ffn_up.lora_a", (8, 768)), ("ffn_up.lora_b", (3072, 8)), ("ffn_down.lora_a", (8, 3072)), ("ffn_down.lora_b", (768, 8)),
)}  # fmt: skip
GPT2_ATTENTION = {f"generalist.blk.{block}.{name}": shape for block in range(12) for name, shape in (
    ("attn_qkv.lora_a", (8, 768)), ("attn_qkv.lora_b", (2304, 8)),
    ("attn_output.lora_a", (8, 768)), ("attn_output.lora_b", (768, 8)),
)}  # fmt: skip
Shapes = dict[str, tuple[int, ...]]


def size(shapes: Shapes, format_name: str, averaging: str = "separate") -> int:
    """Bytes of an update of such tensors."""
    names = rounds.trained_names(shapes, averaging, 2)
    return wire.encoded_size(compress.table({name: shapes[name] for name in names}, format_name))


def doubled(shapes: Shapes) -> Shapes:
    """The same at twice the rank: what a FedAvg with as many weights would send of the MLP."""
    return {name: (2 * a, b) if name.endswith("lora_a") else (a, 2 * b) for name, (a, b) in shapes.items()}


def row(name: str, experts: Shapes, attention: Shapes) -> dict[str, Any]:
    """Sizes of one model."""
    both, fedavg = experts | attention, doubled(experts)
    return {
        "model": name,
        "weights": sum(a * b for a, b in experts.values()),
        "float32": size(experts, "float32"), "float16": size(experts, "float16"), "int8": size(experts, "int8"),
        "float16_with_attention": size(both, "float16"),
        "float16_half": size(experts, "float16", "freeze-a"),
        "of_fedavg": size(experts, "float16") / size(fedavg, "float16"),
        "of_fedavg_with_attention": size(both, "float16") / size(fedavg | attention, "float16"),
    }  # fmt: skip


def split(layout: ExpertsConfig, hparams: HParams) -> tuple[Shapes, Shapes]:
    """The generalist's tensors of the MLP, and of the attention."""
    everything: Shapes = dict(generalist_shapes(replace(layout, attention=True), hparams))
    attention = {name: value for name, value in everything.items() if "attn" in name}
    return {name: value for name, value in everything.items() if name not in attention}, attention


def main() -> None:
    smollm = read_hparams(GGUFFile(find_base(DEFAULT_BASE)[1]))
    rows = [row("GPT-2, the paper's", GPT2, GPT2_ATTENTION)]
    for name, shape in (("SmolLM2-135M", smollm), ("Llama-3.2-1B's shape", LLAMA_1B)):
        rows.append(row(f"{name}, LoRA rank 8", *split(ExpertsConfig(), shape)))
    width = FORMS["parallel"].width(None, 8, smollm)
    experts, _ = split(ExpertsConfig(form="parallel", expert_width=width), smollm)
    parallel = {
        "model": f"SmolLM2-135M, parallel {width} wide", "weights": sum(a * b for a, b in experts.values()),
        **{name: size(experts, name) for name in compress.FORMATS}, "float16_half": size(experts, "float16", "freeze-a"),
    }  # fmt: skip
    rows.append(parallel)
    write_json(result_file("round-bytes.json"), {"command": "make bench WHAT=round-bytes", "rows": rows})
    for each in rows:
        print(
            "  ".join(
                f"{k} {v:,.3f}" if isinstance(v, float) else f"{k} {v:,}" if isinstance(v, int) else v for k, v in each.items()
            )
        )


if __name__ == "__main__":
    main()
