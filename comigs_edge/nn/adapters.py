"""What training makes, in memory: generalist, specialists and router.

Names of tensors: `generalist.blk.3.ffn_gate.lora_a`, `specialist.1.blk.3.ffn_down.lora_b`, `router.blk.3`; a parallel
expert's are `generalist.blk.3.ffn_gate.weight`, those of the shared attention update `generalist.blk.3.attn_q.lora_a`.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from comigs_edge.base.hparams import ATTENTION, HParams
from comigs_edge.nn.experts import (
    FORMS,
    ExpertsConfig,
    check_arrays,
    expected_shapes,
    experts_per_token,
    is_router,
    roles,
    starts,
)
from comigs_edge.nn.lora import LoRA
from comigs_edge.nn.tensors import tensor_to_numpy
from coordinator.protocol.generalist import may_leave
from coordinator.protocol.wire import Arrays

ROUTER_STD = 0.02  # the paper's code, gating.py


class Adapters:
    """All trainable tensors. `named` is the one list of them; the other attributes are views of it by block.

    experts[i]   list of the E experts, the generalist first, as their form views them: `LoRAExpert` or `ParallelExpert`
    routers[i]   (E, D), with a zero expert (E + 1, D), or None where the generalist is alone
    attention[i] GGUF name -> `LoRA`; empty list without the shared attention update

    Below block `first_block` there is nothing: an empty list, None, an empty dictionary.
    """

    def __init__(self, layout: ExpertsConfig, hparams: HParams, named: dict[str, Tensor]) -> None:
        self.layout, self.hparams, self.named = layout, hparams, named
        self.first_block = layout.first_block(hparams.num_blocks)
        self.form = FORMS[layout.form]
        self.experts: list[list[Any]] = [
            [self.form.view(tensors) for tensors in self.by_expert(block)] for block in range(hparams.num_blocks)
        ]
        self.routers = [named.get(f"router.blk.{block}") for block in range(hparams.num_blocks)]
        blocks = range(hparams.num_blocks) if layout.attention else ()
        self.attention = [
            {name: self._update(block, name) for name in ATTENTION if block >= self.first_block} for block in blocks
        ]

    @classmethod
    def initial(cls, layout: ExpertsConfig, hparams: HParams, seed: int) -> Adapters:
        """Adapters that change nothing yet: random A, zero B (gate and up random, down zero), small random router."""
        experts_per_token(layout.num_choices, layout.experts_per_token)
        named: dict[str, Tensor] = {}
        for name, (size, spread) in starts(layout, hparams).items():
            # Each tensor has its own stream, so that adding a specialist leaves the others' start as it was.
            stream = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
            generator = torch.Generator().manual_seed(int.from_bytes(stream, "little") >> 1)
            if is_router(name):
                named[name] = torch.randn(size, generator=generator) * ROUTER_STD
            elif spread == 0:
                named[name] = torch.zeros(size)
            else:
                bound = spread / math.sqrt(size[1])
                named[name] = torch.rand(size, generator=generator) * (2 * bound) - bound
        return cls(layout, hparams, named)

    @classmethod
    def from_arrays(cls, layout: ExpertsConfig, hparams: HParams, arrays: Arrays) -> Adapters:
        """Adapters with the values of `arrays`, which they share.

        Their order is that of the blocks: optimisers count on it, and a file gives its tensors in any order.
        """
        return cls(layout, hparams, {name: torch.from_numpy(arrays[name]) for name in expected_shapes(layout, hparams)})

    def with_zero(self, seed: int) -> Adapters:
        """The same experts, shared, and routers (copies) that may also choose a zero expert; those rows are drawn."""
        other = Adapters.initial(self.layout.with_zero(), self.hparams, seed)
        for name, tensor in self.named.items():
            if is_router(name):
                other.named[name][: len(tensor)] = tensor
        shared = {name: tensor for name, tensor in self.named.items() if not is_router(name)}
        return Adapters(other.layout, self.hparams, {name: shared.get(name, tensor) for name, tensor in other.named.items()})

    def without_zero(self) -> Adapters:
        """The same experts and routers, shared, without the zero expert."""
        layout = self.layout.without_zero()
        shapes = expected_shapes(layout, self.hparams)
        return Adapters(layout, self.hparams, {name: self.named[name][: shape[0]] for name, shape in shapes.items()})

    def to(self, device: torch.device) -> Adapters:
        """The same on another device."""
        return Adapters(self.layout, self.hparams, {name: tensor.to(device) for name, tensor in self.named.items()})

    @property
    def is_initial(self) -> bool:
        """Whether they change nothing yet."""
        return not any(
            bool(self.named[name].any()) for name, start in starts(self.layout, self.hparams).items() if start.spread == 0
        )

    def group(self, router: bool) -> list[Tensor]:
        """The router's tensors, or the experts' (generalist, specialists, attention)."""
        return [tensor for name, tensor in self.named.items() if is_router(name) == router]

    def by_expert(self, block: int) -> list[list[Tensor]]:
        """The tensors of each expert in a block, the generalist first; without the attention update."""
        if block < self.first_block:
            return []
        return [[self.named[f"{role}.blk.{block}.{name}"] for name in self.form.names] for role in roles(self.layout)]

    def arrays(self) -> Arrays:
        """Every tensor as a float32 array, copied."""
        return {name: tensor_to_numpy(tensor).copy() for name, tensor in self.named.items()}

    def load_arrays(self, arrays: Arrays) -> None:
        """Takes over the values of `arrays`, in place; raises `ComigsError` for other names or shapes."""
        check_arrays(arrays, self.layout, self.hparams)
        self._copy(arrays)

    def generalist(self) -> Arrays:
        """What may leave the device, as float32 arrays, copied."""
        return {name: tensor_to_numpy(tensor).copy() for name, tensor in self.named.items() if may_leave(name)}

    def load_generalist(self, arrays: Arrays) -> None:
        """Takes over the generalist's values, in place; the rest stays as it is, and is not copied either."""
        check_arrays({**self.named, **arrays}, self.layout, self.hparams)
        self._copy(arrays)

    @torch.no_grad()
    def _copy(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            self.named[name].copy_(torch.from_numpy(array))

    def _update(self, block: int, name: str) -> LoRA:
        prefix = f"generalist.blk.{block}.{name}"
        return LoRA(self.named[f"{prefix}.lora_a"], self.named[f"{prefix}.lora_b"])
