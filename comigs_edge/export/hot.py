"""The layout `hot`: a base that is written once and never merged, and adapters that llama.cpp swaps while it runs.

The base's file holds the bytes of its MLP once for every expert and a router of zeros. The generalist (with the shared
attention update) and the specialists (with the router, a LoRA on those zeros: R times the identity) are two LoRA files, each
with zeros in the places of the other. A new generalist is one file of a few megabytes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from comigs_edge import files
from comigs_edge.base.hparams import ATTENTION, FFN, HParams, llama_order, read_hparams
from comigs_edge.errors import ComigsError
from comigs_edge.export.current import BASE_KEY, HOT_PARTS, SOURCE_KEY, Exported
from comigs_edge.export.merged import write_model
from comigs_edge.export.planner import (
    Metadata,
    copy_tensor,
    mixture_metadata,
    needs_llama_order,
    plan_router,
    repeat_experts,
    stacked_name,
)
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.lora import LoRA
from comigs_edge.nn.tensors import tensor_to_numpy
from comigs_edge.progress import SILENT, Progress
from quantize import ggml
from quantize.formats import BlockFormat, block_format
from quantize.ggml import Floats
from quantize.gguf_file import GGUFFile
from quantize.gguf_writer import TensorPlan, entry, total_size, write

FORMATS = ("F16", "F32")  # of the adapters; with F32 the base is F32 too


def write_base(
    base: GGUFFile, adapters: Adapters, format_name: str, output: Path, base_sha256: str = "", progress: Progress = SILENT
) -> Exported:
    """Writes the base for these adapters' number of experts; it fits every adapter of the same layout."""
    hparams, layout = read_hparams(base), adapters.layout
    architecture = _architecture(hparams, adapters)
    plans = _base_plans(base, hparams, adapters, format_name)
    changes: Metadata = {"general.architecture": architecture, BASE_KEY: base_sha256}
    if layout.num_choices > 1:
        changes |= mixture_metadata(architecture, hparams, layout)
    return write_model(base, hparams, plans, changes, output, progress)


def write_adapter(base: GGUFFile, adapters: Adapters, part: str, format_name: str, output: Path, sha256: str) -> int:
    """Writes the LoRA file of `part`, one of HOT_PARTS; returns its bytes."""
    hparams = read_hparams(base)
    metadata: Metadata = {"general.type": "adapter", "general.architecture": _architecture(hparams, adapters)}
    # With an alpha of 0 llama.cpp scales by 1: the scale is in B.
    metadata |= {"adapter.type": "lora", "adapter.lora.alpha": 0.0, SOURCE_KEY: sha256}
    plans = _adapter_plans(adapters, hparams, part, block_format(format_name))
    with files.atomic_writer(output) as file:
        write(file, [entry(key, value) for key, value in metadata.items()], plans)
    return output.stat().st_size


def planned_size(base: GGUFFile, adapters: Adapters, format_name: str) -> int:
    """Bytes of the tensors that `write_base` and `write_adapter` would write; raises as they do."""
    hparams, fmt = read_hparams(base), block_format(format_name)
    parts = [_adapter_plans(adapters, hparams, part, fmt) for part in HOT_PARTS]
    return total_size(_base_plans(base, hparams, adapters, format_name)) + sum(map(total_size, parts))


def _base_plans(base: GGUFFile, hparams: HParams, adapters: Adapters, format_name: str) -> list[TensorPlan]:
    layout, fmt = adapters.layout, block_format(format_name)
    in_llama_order = needs_llama_order(hparams, _architecture(hparams, adapters))
    plans: list[TensorPlan] = []
    for name in base.tensors:
        part = name.split(".")[-2]
        order = llama_order(hparams, name.split(".", 2)[-1]) if in_llama_order else None
        plan = copy_tensor(base, name, fmt, order=order)
        plans.append(repeat_experts(plan, layout.num_choices) if part in FFN else plan)
        if part == FFN[-1] and layout.num_choices > 1:
            plans.append(plan_router(int(name.split(".")[1]), np.zeros((layout.num_choices, hparams.width), np.float32)))
    return plans


def _architecture(hparams: HParams, adapters: Adapters) -> str:
    if not adapters.form.is_low_rank:
        raise ComigsError(
            "the layout hot is for LoRA experts; parallel experts are swapped by rewriting their small tensors: "
            "comigs-edge export --layout merged"
        )
    return adapters.form.architecture(hparams.architecture, adapters.layout.num_choices)


def _adapter_plans(adapters: Adapters, hparams: HParams, part: str, fmt: BlockFormat) -> list[TensorPlan]:
    layout, in_llama_order = adapters.layout, needs_llama_order(hparams, _architecture(hparams, adapters))
    experts = range(1) if part == HOT_PARTS[0] else range(1, layout.num_experts)
    plans: list[TensorPlan] = []
    for block in range(adapters.first_block, hparams.num_blocks):
        for index, name in enumerate(FFN):
            updates = [expert[index] for expert in adapters.experts[block]]
            weight = f"blk.{block}.{name}.weight"
            weight = stacked_name(weight) if layout.num_choices > 1 else weight
            plans += _pair(weight, *_slots(updates, layout, experts), fmt)
        router = adapters.routers[block]
        if part == HOT_PARTS[1] and router is not None:
            identity = np.eye(layout.num_choices, dtype=np.float32)
            plans += _pair(f"blk.{block}.ffn_gate_inp.weight", tensor_to_numpy(router), identity, block_format("F32"))
        if part == HOT_PARTS[0] and layout.attention:
            for name in ATTENTION:
                a, b = (tensor_to_numpy(tensor) for tensor in adapters.attention[block][name])
                order = llama_order(hparams, name)
                if order is not None and not in_llama_order:
                    b = b[np.argsort(order)]
                plans += _pair(f"blk.{block}.{name}.weight", a, b * np.float32(layout.scale), fmt)
    return plans


def _slots(updates: list[LoRA], layout: ExpertsConfig, experts: range) -> tuple[Floats, Floats]:
    """A (E, R, in) and B (E, out, R) with zeros where an expert is not in this file, and of the zero expert; flat for one."""
    a = np.zeros((layout.num_choices, *updates[0].a.shape), np.float32)
    b = np.zeros((layout.num_choices, *updates[0].b.shape), np.float32)
    for expert in experts:
        update = updates[expert]
        a[expert], b[expert] = tensor_to_numpy(update.a), tensor_to_numpy(update.b) * np.float32(layout.expert_scale)
    return (a, b) if layout.num_choices > 1 else (a[0], b[0])


def _pair(name: str, a: Floats, b: Floats, fmt: BlockFormat) -> list[TensorPlan]:
    return [
        TensorPlan(f"{name}.{suffix}", values.shape, fmt, partial(ggml.quantize, name, values, fmt))
        for suffix, values in (("lora_a", a), ("lora_b", b))
    ]
