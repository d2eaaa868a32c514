"""Adapters and base become one GGUF file that unmodified llama.cpp runs.

Layout of Mixtral: each expert's low-rank updates merged into its own copy of the MLP, the copies stacked in
`ffn_{gate,up,down}_exps` with the generalist first, the router in `ffn_gate_inp` (F32). The generalist alone becomes a
dense model. Untouched tensors keep the base's bytes; F32 is the reference format, in which every tensor is F32.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from comigs_edge import files, lora
from comigs_edge.adapters import Adapters
from comigs_edge.base import tensor_to_numpy
from comigs_edge.layout import ATTENTION, FFN
from comigs_edge.lora import LoRA
from quantize import ggml
from quantize.formats import FILE_TYPES, FORMATS, BlockFormat, block_format, check_rows
from quantize.ggml import Bytes, Floats
from quantize.gguf_file import GGUFFile
from quantize.gguf_writer import TensorPlan, copied, metadata_with, total_size, write

FORMATS_TO_EXPORT = ("Q8_0", "F16", "F32", "Q4_0", "Q4_1")
FOUR_BIT_WARNING = (
    "{format} rounds the merged weights again: of a small update to a 4-bit base as little as 6 to 14 % survives; "
    "Q8_0 keeps all of it (perplexity +0.2 %)"
)
SOURCE_KEY = "comigs_edge.adapters_sha256"  # which adapters an exported file holds
_LINEAR = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    path: Path
    size: int  # bytes
    sha256: str


def export(
    base: GGUFFile, adapters: Adapters | None, format_name: str, output: Path, adapters_sha256: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:  # fmt: skip
    """Writes the personal model to `output` (whole or not at all); `progress` gets bytes written and bytes in all.

    Without adapters the base itself is written, which is of use for comparisons in another format. Raises
    `QuantizeError` if a row is not a whole number of blocks, before anything is written.
    """
    fmt = block_format(format_name)
    plans = _plans(base, adapters, fmt)
    changes: dict[str, str | int | float] = {"general.file_type": FILE_TYPES[fmt.name]}
    if adapters is not None:
        changes |= {
            "general.name": f"{base.metadata.get('general.name', 'llama')}, personal",
            SOURCE_KEY: adapters_sha256,
        }
        if adapters.layout.num_experts > 1:
            changes |= {
                "llama.expert_count": adapters.layout.num_experts,
                "llama.expert_used_count": adapters.layout.experts_per_token,
            }
    done, total = 0, total_size(plans)

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    with files.atomic_writer(output) as file:
        write(file, metadata_with(base, changes), plans, base.alignment, advance)
    return Exported(output, output.stat().st_size, files.sha256_file(output))


def _plans(base: GGUFFile, adapters: Adapters | None, fmt: BlockFormat) -> list[TensorPlan]:
    plans: list[TensorPlan] = []
    for name in base.tensors:
        match = _LINEAR.fullmatch(name)
        updates = _updates(adapters, int(match[1]), match[2]) if match else []
        if updates and adapters is not None:
            plans.append(_merged(base, name, updates, adapters.layout.scale, fmt))
        elif fmt.name == "F32":
            plans.append(_converted(base, name))
        else:
            plans.append(copied(base, name))
        if match and match[2] == FFN[-1] and adapters is not None:
            router = adapters.routers[int(match[1])]
            if router is not None:
                plans.append(_router(int(match[1]), tensor_to_numpy(router)))
    return plans


def _updates(adapters: Adapters | None, block: int, name: str) -> list[LoRA]:
    """The low-rank updates of one linear map: one for each expert in the MLP, the shared one in the attention."""
    if adapters is None:
        return []
    if name in FFN:
        return [expert[FFN.index(name)] for expert in adapters.experts[block]]
    return [adapters.attention[block][name]] if adapters.attention and name in ATTENTION else []


def _merged(base: GGUFFile, name: str, updates: list[LoRA], scale: float, fmt: BlockFormat) -> TensorPlan:
    shape = base.tensors[name].shape
    check_rows(name, shape[-1], fmt)

    def make() -> Bytes:
        weight = torch.from_numpy(base.dequantize(name))
        return np.concatenate(
            [ggml.quantize(name, _numpy(lora.merge(weight, update, scale)), fmt) for update in updates]
        )

    if len(updates) == 1:
        return TensorPlan(name, shape, fmt, make)
    return TensorPlan(name.replace(".weight", "_exps.weight"), (len(updates), *shape), fmt, make)


def _numpy(tensor: torch.Tensor) -> Floats:
    return np.ascontiguousarray(tensor_to_numpy(tensor))


def _router(block: int, weights: Floats) -> TensorPlan:
    fmt = FORMATS["F32"]
    name = f"blk.{block}.ffn_gate_inp.weight"
    return TensorPlan(name, weights.shape, fmt, lambda: ggml.quantize(name, weights, fmt))


def _converted(base: GGUFFile, name: str) -> TensorPlan:
    fmt = FORMATS["F32"]
    return TensorPlan(name, base.tensors[name].shape, fmt, lambda: ggml.quantize(name, base.dequantize(name), fmt))
