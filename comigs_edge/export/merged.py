"""Adapters and base become one GGUF file that unmodified llama.cpp runs.

LoRA experts: layout of Mixtral, each expert's updates merged into its own copy of the MLP, the copies stacked in
`ffn_{gate,up,down}_exps` with the generalist first. Parallel experts: layout of Granite's mixture, the base's MLP as the
shared expert (`*_shexp`), its bytes unchanged, the small experts in `*_exps`. The router is `ffn_gate_inp` (F32). A LoRA
generalist alone becomes a dense model. A block without experts gets what llama.cpp asks for in every block: copies of the
base's MLP, or parallel experts of zeros, and a router of zeros. What training does not change keeps the base's bytes; F32 is
the reference format, in which every tensor is F32. `hot.py` has the layout that is never merged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from comigs_edge import files
from comigs_edge.base.hparams import ARCHITECTURES, Shape, exported_as, llama_order, read_shape
from comigs_edge.nn import lora
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ATTENTION, FFN
from comigs_edge.nn.tensors import tensor_to_numpy
from quantize import ggml
from quantize.formats import FILE_TYPES, FORMATS, BlockFormat, block_format, fitting
from quantize.ggml import Bytes, Floats
from quantize.gguf_file import GGUFFile
from quantize.gguf_writer import TensorPlan, copied, metadata_with, total_size, write

SOURCE_KEY = "comigs_edge.adapters_sha256"  # which adapters an exported file holds
BASE_KEY = "comigs_edge.base_sha256"  # and which base
_LINEAR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
Metadata = dict[str, str | int | float]


class Origin(NamedTuple):
    """What a file was made of, as SHA-256."""

    adapters: str = ""
    base: str = ""


@dataclass(frozen=True)
class Exported:
    """Files that were written: one, or a base and the adapters that llama.cpp adds to it."""

    path: Path
    size: int  # bytes, of all
    sha256: str  # of `path`; empty where it was there already
    formats: dict[str, int] = field(default_factory=dict)  # tensors that hold what was trained, by block format
    adapters: tuple[Path, ...] = ()


def export(
    base: GGUFFile, adapters: Adapters | None, format_name: str, output: Path, origin: Origin = Origin(),
    progress: Callable[[int, int], None] = lambda done, total: None, threads: int = 1,
) -> Exported:  # fmt: skip
    """Writes the personal model to `output` (whole or not at all); `progress` gets bytes written and bytes in all.

    Without adapters the base itself is written, which is of use for comparisons in another format. Raises
    `QuantizeError` if a row is not a whole number of blocks and `ComigsError` if llama.cpp has no architecture for these
    experts beside this base, before anything is written.
    """
    shape = read_shape(base)
    plans, changes = tensor_plans(base, shape, adapters, format_name, origin, threads)
    return write_model(base, shape, plans, changes, output, progress)


def planned_size(base: GGUFFile, adapters: Adapters, format_name: str) -> int:
    """Bytes of the tensors that `export` would write; raises as it does."""
    return total_size(tensor_plans(base, read_shape(base), adapters, format_name, Origin())[0])


def tensor_plans(
    base: GGUFFile, shape: Shape, adapters: Adapters | None, format_name: str, origin: Origin, threads: int = 1
) -> tuple[list[TensorPlan], Metadata]:
    """The tensors of a file that is exported, and what its metadata have in other words than the base's."""
    fmt, architecture = block_format(format_name), target_architecture(shape, adapters)
    plans = list(_Planner(base, shape, adapters, fmt, architecture, threads).plans())
    return plans, _metadata(base, shape, adapters, fmt, architecture, origin)


def target_architecture(shape: Shape, adapters: Adapters | None) -> str:
    """The architecture of the file; raises `ComigsError` if llama.cpp has none that is exact."""
    if adapters is None:
        return shape.architecture
    return exported_as(shape.architecture, adapters.layout.form, adapters.layout.num_experts)


def write_model(
    base: GGUFFile, shape: Shape, plans: list[TensorPlan], changes: Metadata, output: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:  # fmt: skip
    """Writes a file of the base's metadata with `changes` (the architecture among them) and these tensors."""
    done, total = 0, total_size(plans)

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    with files.atomic_writer(output) as file:
        write(file, entries(base, shape, changes), plans, base.alignment, advance)
    return exported(output, plans)


def entries(base: GGUFFile, shape: Shape, changes: Metadata) -> list[bytes]:
    """The metadata of a file: the base's with `changes`."""
    return metadata_with(base, changes, (f"{shape.architecture}.", f"{changes['general.architecture']}."))


def exported(path: Path, plans: list[TensorPlan]) -> Exported:
    """What `path` holds, written by these plans."""
    formats: dict[str, int] = {}
    for plan in plans:
        if not plan.is_fixed and not plan.name.endswith("ffn_gate_inp.weight"):
            formats[plan.format.name] = formats.get(plan.format.name, 0) + 1
    return Exported(path, path.stat().st_size, files.sha256_file(path), formats)


def _metadata(
    base: GGUFFile, shape: Shape, adapters: Adapters | None, fmt: BlockFormat, architecture: str, origin: Origin
) -> Metadata:
    changes: Metadata = {"general.architecture": architecture}
    if adapters is None or adapters.layout.form == "lora" or fmt.name == "F32":
        changes["general.file_type"] = FILE_TYPES[fmt.name]
    if adapters is None:
        return changes
    layout = adapters.layout
    changes |= {"general.name": f"{base.metadata.get('general.name', 'model')}, personal"}
    changes |= {SOURCE_KEY: origin.adapters, BASE_KEY: origin.base}
    if layout.num_experts > 1 or layout.form == "parallel":
        changes |= mixture_metadata(architecture, shape, layout.num_experts, layout.experts_per_token)
    if layout.form == "parallel":
        changes |= {
            f"{architecture}.feed_forward_length": layout.expert_width,
            f"{architecture}.expert_shared_feed_forward_length": shape.ff_width,
            f"{architecture}.logit_scale": 1.0,
        }
    return changes


def mixture_metadata(architecture: str, shape: Shape, experts: int, per_token: int) -> Metadata:
    """What tells llama.cpp that a model is a mixture."""
    changes: Metadata = {f"{architecture}.expert_count": experts, f"{architecture}.expert_used_count": per_token}
    if architecture == "qwen3moe":
        changes[f"{architecture}.expert_feed_forward_length"] = shape.ff_width
    return changes


class _Planner:
    """Plans the tensors of one file."""

    def __init__(
        self, base: GGUFFile, shape: Shape, adapters: Adapters | None, fmt: BlockFormat, architecture: str, threads: int
    ) -> None:
        self.base, self.shape, self.adapters, self.fmt, self.threads = base, shape, adapters, fmt, threads
        self.reorders = reorders(shape, architecture)

    def plans(self) -> Iterator[TensorPlan]:
        for name in self.base.tensors:
            match = _LINEAR.fullmatch(name)
            if match is None or self.adapters is None:
                yield fixed(self.base, name, self.fmt)
                continue
            block, part, kind = int(match[1]), match[2], match[3]
            if part in FFN:
                yield from self._ffn(block, name, part)
            elif part in ATTENTION and kind == "weight" and self.adapters.attention and self._has_experts(block):
                yield self._attention(block, name, part)
            else:
                order = llama_order(self.shape, f"{part}.{kind}") if self.reorders else None
                yield fixed(self.base, name, self.fmt, order=order)
            if part == FFN[-1]:
                yield from self._router(block)

    def _ffn(self, block: int, name: str, part: str) -> Iterator[TensorPlan]:
        assert self.adapters is not None
        layout, index = self.adapters.layout, FFN.index(part)
        stacked = name.replace(".weight", "_exps.weight")
        if layout.form == "parallel":
            yield fixed(self.base, name, self.fmt, name.replace(".weight", "_shexp.weight"))
            factor = layout.expert_scale if part == FFN[-1] else 1.0
            small = self._small(block, index)
            yield self._new(
                stacked, (len(small), *small[0].shape), lambda: (weight * np.float32(factor) for weight in small)
            )
            return
        if not self._has_experts(block):
            yield copies(fixed(self.base, name, self.fmt), layout.num_experts)
            return
        updates = [expert[index] for expert in self.adapters.experts[block]]
        shape = self.base.tensors[name].shape

        def merged() -> Iterator[Floats]:
            weight = torch.from_numpy(self.base.dequantize(name))
            return (_numpy(lora.merge(weight, update, layout.expert_scale)) for update in updates)

        yield self._new(stacked, (len(updates), *shape), merged) if len(updates) > 1 else self._new(name, shape, merged)

    def _has_experts(self, block: int) -> bool:
        return self.adapters is not None and block >= self.adapters.first_block

    def _small(self, block: int, index: int) -> list[Floats]:
        """One matrix of every parallel expert; zeros where the block has none, because llama.cpp asks for them in all."""
        assert self.adapters is not None
        if self._has_experts(block):
            return [tensor_to_numpy(expert[index]) for expert in self.adapters.parallel[block]]
        size = (self.adapters.layout.expert_width, self.shape.width)
        zeros = np.zeros(size[::-1] if FFN[index] == FFN[-1] else size, np.float32)
        return [zeros] * self.adapters.layout.num_experts

    def _attention(self, block: int, name: str, part: str) -> TensorPlan:
        assert self.adapters is not None
        adapters, order = self.adapters, llama_order(self.shape, part)

        def merged() -> Iterator[Floats]:
            weight = torch.from_numpy(self.base.dequantize(name))
            weight = weight if order is None else weight[order]  # updates are trained in llama's order
            weight = lora.merge(weight, adapters.attention[block][part], adapters.layout.scale)
            yield _numpy(weight if order is None or self.reorders else weight[np.argsort(order)])

        return self._new(name, self.base.tensors[name].shape, merged)

    def _router(self, block: int) -> Iterator[TensorPlan]:
        assert self.adapters is not None
        router = self.adapters.routers[block]
        if router is not None:
            yield router_plan(block, tensor_to_numpy(router))
        elif self.adapters.layout.form == "parallel" or self.adapters.layout.num_experts > 1:
            # A generalist alone, where the softmax over one logit is 1, or a block whose experts are all alike.
            yield router_plan(block, np.zeros((self.adapters.layout.num_experts, self.shape.width), np.float32))

    def _new(self, name: str, shape: tuple[int, ...], make: Callable[[], Iterator[Floats]]) -> TensorPlan:
        """A tensor that training changes, quantised matrix by matrix."""
        fmt = fitting(name, shape[-1], self.fmt)
        return TensorPlan(
            name, shape, fmt, lambda: np.concatenate([ggml.quantize(name, w, fmt, self.threads) for w in make()])
        )


def reorders(shape: Shape, architecture: str) -> bool:
    """Whether the rows of queries and keys must be put into llama's order for this architecture."""
    return ARCHITECTURES[shape.architecture].turns_halves and architecture in ("llama", "granitemoe")


def fixed(base: GGUFFile, name: str, fmt: BlockFormat, renamed: str = "", order: list[int] | None = None) -> TensorPlan:
    """A tensor of the base: its bytes, or its weights where the whole file is to be F32."""
    if fmt.name != "F32":
        return copied(base, name, renamed, order)

    def make() -> Bytes:
        weights = base.dequantize(name)
        return ggml.quantize(name, weights if order is None else weights[order], fmt)

    return TensorPlan(renamed or name, base.tensors[name].shape, fmt, make, is_fixed=True)


def copies(plan: TensorPlan, count: int) -> TensorPlan:
    """The same MLP for each of `count` experts; for one alone, the plan itself."""
    if count == 1:
        return plan
    name = plan.name.replace(".weight", "_exps.weight")
    return TensorPlan(name, (count, *plan.shape), plan.format, lambda: np.tile(plan.make(), count), is_fixed=True)


def router_plan(block: int, weights: Floats) -> TensorPlan:
    """The router of a block, (E, D)."""
    fmt, name = FORMATS["F32"], f"blk.{block}.ffn_gate_inp.weight"
    return TensorPlan(name, weights.shape, fmt, lambda: ggml.quantize(name, weights, fmt))


def _numpy(tensor: torch.Tensor) -> Floats:
    return np.ascontiguousarray(tensor_to_numpy(tensor))
