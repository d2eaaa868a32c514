"""Plans the tensors and the metadata of a merged file, one planner for each way in which a file holds experts.

`copies`: layout of Mixtral, each expert's updates merged into its own copy of the MLP, the copies stacked in
`ffn_{gate,up,down}_exps` with the generalist first; a generalist alone becomes a dense model. `beside`: layout of Granite's
mixture, the base's MLP as the shared expert (`*_shexp`), its bytes unchanged, the small experts in `*_exps` and a zero expert
as one of zeros behind them. The router is `ffn_gate_inp` (F32). A block without experts gets what llama.cpp asks for in every
block: copies of the base's MLP, or small experts of zeros, and a router of zeros. What training does not change keeps the
base's bytes; F32 is the reference format, in which every tensor is F32.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import torch

from comigs_edge.base.hparams import ARCHITECTURES, ATTENTION, FFN, HParams, llama_order
from comigs_edge.nn import lora
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.tensors import tensor_to_numpy
from quantize import ggml
from quantize.formats import FORMATS, BlockFormat, fit_format
from quantize.ggml import Bytes, Floats
from quantize.gguf_file import GGUFFile
from quantize.gguf_writer import TensorPlan, plan_copy

Metadata = dict[str, str | int | float]
_LINEAR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class Planner(ABC):
    """The file of a base with its adapters."""

    always_mixture: ClassVar[bool] = False  # also where the generalist is alone

    def __init__(
        self, base: GGUFFile, hparams: HParams, adapters: Adapters, fmt: BlockFormat, architecture: str, threads: int
    ) -> None:
        self.base, self.hparams, self.adapters, self.fmt, self.threads = base, hparams, adapters, fmt, threads
        self.layout, self.architecture = adapters.layout, architecture
        self.is_mixture = self.always_mixture or self.layout.num_choices > 1
        self.in_llama_order = needs_llama_order(hparams, architecture)

    @abstractmethod
    def _plan_ffn(self, block: int, name: str, part: str) -> Iterator[TensorPlan]:
        """The tensors that stand for the base's `part` (one of FFN), called `name`."""

    def metadata(self) -> Metadata:
        """What tells llama.cpp of the experts."""
        return mixture_metadata(self.architecture, self.hparams, self.layout) if self.is_mixture else {}

    def plans(self) -> Iterator[TensorPlan]:
        """All tensors, in the order of the base's."""
        for name in self.base.tensors:
            match = _LINEAR.fullmatch(name)
            if match is None:
                yield copy_tensor(self.base, name, self.fmt)
                continue
            block, part, kind = int(match[1]), match[2], match[3]
            if part in FFN:
                yield from self._plan_ffn(block, name, part)
            elif part in ATTENTION and kind == "weight" and self.adapters.attention and self._has_experts(block):
                yield self._plan_attention(block, name, part)
            else:
                order = llama_order(self.hparams, f"{part}.{kind}") if self.in_llama_order else None
                yield copy_tensor(self.base, name, self.fmt, order=order)
            if part == FFN[-1]:
                yield from self._plan_router(block)

    def _has_experts(self, block: int) -> bool:
        """Whether adapters were trained in this block."""
        return block >= self.adapters.first_block

    def _plan_trained(self, name: str, shape: tuple[int, ...], make: Callable[[], Iterator[Floats]]) -> TensorPlan:
        """A tensor that training changes, quantised matrix by matrix."""
        fmt = fit_format(name, shape[-1], self.fmt)
        return TensorPlan(name, shape, fmt, lambda: np.concatenate([ggml.quantize(name, w, fmt, self.threads) for w in make()]))

    def _plan_attention(self, block: int, name: str, part: str) -> TensorPlan:
        update, order = self.adapters.attention[block][part], llama_order(self.hparams, part)

        def merge() -> Iterator[Floats]:
            weight = torch.from_numpy(self.base.dequantize(name))
            weight = weight if order is None else weight[order]  # updates are trained in llama's order
            weight = lora.merge(weight, update, self.layout.scale)
            yield tensor_to_numpy(weight if order is None or self.in_llama_order else weight[np.argsort(order)])

        return self._plan_trained(name, self.base.tensors[name].shape, merge)

    def _plan_router(self, block: int) -> Iterator[TensorPlan]:
        router = self.adapters.routers[block]
        if router is not None:
            yield plan_router(block, tensor_to_numpy(router))
        elif self.is_mixture:
            # A generalist alone, where the softmax over one logit is 1, or a block whose experts are all alike.
            yield plan_router(block, np.zeros((self.layout.num_choices, self.hparams.width), np.float32))


class CopiesPlanner(Planner):
    """Every expert is a whole MLP: the base's with low-rank updates merged in, for the zero expert without."""

    def _plan_ffn(self, block: int, name: str, part: str) -> Iterator[TensorPlan]:
        if not self._has_experts(block):
            yield repeat_experts(copy_tensor(self.base, name, self.fmt), self.layout.num_choices)
            return
        updates = [expert[FFN.index(part)] for expert in self.adapters.experts[block]]
        size = self.base.tensors[name].shape

        def merge() -> Iterator[Floats]:
            weight = torch.from_numpy(self.base.dequantize(name))
            for update in updates:
                yield tensor_to_numpy(lora.merge(weight, update, self.layout.expert_scale))
            if self.layout.zero_expert:
                yield tensor_to_numpy(weight)

        if self.is_mixture:
            yield self._plan_trained(stacked_name(name), (self.layout.num_choices, *size), merge)
        else:
            yield self._plan_trained(name, size, merge)


class BesidePlanner(Planner):
    """Every expert is a small MLP beside the base's."""

    always_mixture = True

    def metadata(self) -> Metadata:
        """Also the widths of the experts and of the base's MLP, which every token uses."""
        return super().metadata() | {
            f"{self.architecture}.feed_forward_length": self.layout.expert_width,
            f"{self.architecture}.expert_shared_feed_forward_length": self.hparams.ff_width,
            f"{self.architecture}.logit_scale": 1.0,
        }

    def _plan_ffn(self, block: int, name: str, part: str) -> Iterator[TensorPlan]:
        yield copy_tensor(self.base, name, self.fmt, name.replace(".weight", "_shexp.weight"))
        factor = np.float32(self.layout.expert_scale if part == FFN[-1] else 1.0)
        small = self._matrices(block, FFN.index(part))
        yield self._plan_trained(stacked_name(name), (len(small), *small[0].shape), lambda: (weight * factor for weight in small))

    def _matrices(self, block: int, index: int) -> list[Floats]:
        """One matrix of every expert, and of the zero expert."""
        size = (self.layout.expert_width, self.hparams.width)
        zeros = np.zeros(size[::-1] if FFN[index] == FFN[-1] else size, np.float32)
        there = self.adapters.experts[block] if self._has_experts(block) else []
        return [tensor_to_numpy(expert[index]) for expert in there] + [zeros] * (self.layout.num_choices - len(there))


PLANNERS: dict[str, type[Planner]] = {"copies": CopiesPlanner, "beside": BesidePlanner}


def mixture_metadata(architecture: str, hparams: HParams, layout: ExpertsConfig) -> Metadata:
    """What tells llama.cpp that a model is a mixture."""
    changes: Metadata = {
        f"{architecture}.expert_count": layout.num_choices,
        f"{architecture}.expert_used_count": layout.experts_per_token,
    }
    if architecture == "qwen3moe":
        changes[f"{architecture}.expert_feed_forward_length"] = hparams.ff_width
    return changes


def needs_llama_order(hparams: HParams, architecture: str) -> bool:
    """Whether the rows of queries and keys must be put into llama's order for this architecture."""
    return ARCHITECTURES[hparams.architecture].turns_halves and architecture in ("llama", "granitemoe")


def copy_tensor(base: GGUFFile, name: str, fmt: BlockFormat, renamed: str = "", order: list[int] | None = None) -> TensorPlan:
    """A tensor of the base: its bytes, or its weights where the whole file is to be F32."""
    if fmt.name != "F32":
        return plan_copy(base, name, renamed, order)

    def make() -> Bytes:
        weights = base.dequantize(name)
        return ggml.quantize(name, weights if order is None else weights[order], fmt)

    return TensorPlan(renamed or name, base.tensors[name].shape, fmt, make, is_fixed=True)


def stacked_name(name: str) -> str:
    """The name of the tensor that holds this matrix of all experts."""
    return name.replace(".weight", "_exps.weight")


def repeat_experts(plan: TensorPlan, count: int) -> TensorPlan:
    """The same MLP for each of `count` experts; for one alone, the plan itself."""
    if count == 1:
        return plan
    return TensorPlan(
        stacked_name(plan.name), (count, *plan.shape), plan.format, lambda: np.tile(plan.make(), count), is_fixed=True
    )


def plan_router(block: int, weights: Floats) -> TensorPlan:
    """The router of a block, (E, D)."""
    fmt, name = FORMATS["F32"], f"blk.{block}.ffn_gate_inp.weight"
    return TensorPlan(name, weights.shape, fmt, lambda: ggml.quantize(name, weights, fmt))
