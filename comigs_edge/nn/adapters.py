"""What training makes, in memory: generalist, specialists and router.

Names of tensors: `generalist.blk.3.ffn_gate.lora_a`, `specialist.1.blk.3.ffn_down.lora_b`, `router.blk.3`; a parallel
expert's are `generalist.blk.3.ffn_gate.weight`, those of the shared attention update `generalist.blk.3.attn_q.lora_a`.
"""

from __future__ import annotations

import hashlib
import re

import torch
from torch import Tensor

from comigs_edge.base.hparams import Shape
from comigs_edge.nn import lora, parallel
from comigs_edge.nn.experts import (
    ATTENTION,
    FFN,
    Layout,
    check_arrays,
    expected_shapes,
    experts_per_token,
    is_router,
    roles,
)
from comigs_edge.nn.lora import LoRA, LoRAExpert
from comigs_edge.nn.parallel import ParallelExpert
from comigs_edge.nn.tensors import tensor_to_numpy
from coordinator.protocol.generalist import may_leave
from coordinator.protocol.wire import Arrays

ROUTER_STD = 0.02  # the paper's code, gating.py

_STARTS_AT_ZERO = re.compile(r"\.lora_b$|\.ffn_down\.weight$")


class Adapters:
    """All trainable tensors. `named` is the one list of them; the other attributes are views of it by block.

    experts[i]   list of E `LoRAExpert`, the generalist first; empty list where they are parallel
    parallel[i]  list of E `ParallelExpert`; empty list where they are LoRA
    routers[i]   (E, D), or None where the generalist is alone
    attention[i] GGUF name -> `LoRA`; empty list without the shared attention update

    Below block `first_block` there is nothing: an empty list, None, an empty dictionary.
    """

    def __init__(self, layout: Layout, shape: Shape, named: dict[str, Tensor]) -> None:
        self.layout, self.shape, self.named = layout, shape, named
        self.first_block = layout.first_block(shape.num_blocks)
        self.experts: list[list[LoRAExpert]] = []
        self.parallel: list[list[ParallelExpert]] = []
        for block in range(shape.num_blocks):
            found = roles(layout) if block >= self.first_block else []
            if layout.form == "lora":
                self.experts.append([self._lora_expert(role, block) for role in found])
            else:
                self.parallel.append([self._parallel_expert(role, block) for role in found])
        self.routers = [named.get(f"router.blk.{block}") for block in range(shape.num_blocks)]
        self.attention = [
            {name: self._lora("generalist", block, name) for name in ATTENTION if block >= self.first_block}
            for block in range(shape.num_blocks)
        ] if layout.attention else []  # fmt: skip

    @classmethod
    def initial(cls, layout: Layout, shape: Shape, seed: int) -> Adapters:
        """Adapters that change nothing yet: random A, zero B (gate and up random, down zero), small random router."""
        experts_per_token(layout.num_experts, layout.experts_per_token)
        named: dict[str, Tensor] = {}
        for name, size in expected_shapes(layout, shape).items():
            # Each tensor has its own stream, so that adding a specialist leaves the others' start as it was.
            generator = torch.Generator().manual_seed(_stream(seed, name))
            if name.startswith("router."):
                named[name] = torch.randn(size, generator=generator) * ROUTER_STD
            elif _STARTS_AT_ZERO.search(name):
                named[name] = torch.zeros(size)
            else:
                named[name] = lora.initial(size, generator, parallel.START if name.endswith(".weight") else 1.0)
        return cls(layout, shape, named)

    @classmethod
    def from_arrays(cls, layout: Layout, shape: Shape, arrays: Arrays) -> Adapters:
        """Adapters with the values of `arrays`, which they share.

        Their order is that of the blocks: optimisers count on it, and a file gives its tensors in any order.
        """
        return cls(layout, shape, {name: torch.from_numpy(arrays[name]) for name in expected_shapes(layout, shape)})

    def to(self, device: torch.device) -> Adapters:
        """The same on another device."""
        return Adapters(self.layout, self.shape, {name: tensor.to(device) for name, tensor in self.named.items()})

    @property
    def is_initial(self) -> bool:
        """Whether they change nothing yet."""
        return not any(bool(tensor.any()) for name, tensor in self.named.items() if _STARTS_AT_ZERO.search(name))

    def group(self, router: bool) -> list[Tensor]:
        """The router's tensors, or the experts' (generalist, specialists, attention)."""
        return [tensor for name, tensor in self.named.items() if is_router(name) == router]

    def by_expert(self, block: int) -> list[list[Tensor]]:
        """The tensors of each expert in a block, the generalist first; without the attention update."""
        if self.layout.form == "lora":
            return [[tensor for update in expert for tensor in update] for expert in self.experts[block]]
        return [list(expert) for expert in self.parallel[block]]

    def arrays(self) -> Arrays:
        """Every tensor as a float32 array, copied."""
        return {name: tensor_to_numpy(tensor).copy() for name, tensor in self.named.items()}

    def load_arrays(self, arrays: Arrays) -> None:
        """Takes over the values of `arrays`, in place; raises `ComigsError` for other names or shapes."""
        check_arrays(arrays, self.layout, self.shape)
        self._copy(arrays)

    def generalist(self) -> Arrays:
        """What may leave the device, as float32 arrays, copied."""
        return {name: tensor_to_numpy(tensor).copy() for name, tensor in self.named.items() if may_leave(name)}

    def load_generalist(self, arrays: Arrays) -> None:
        """Takes over the generalist's values, in place; the rest stays as it is."""
        check_arrays({**self.named, **arrays}, self.layout, self.shape)
        self._copy(arrays)

    @torch.no_grad()
    def _copy(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            self.named[name].copy_(torch.from_numpy(array))

    def _lora(self, role: str, block: int, name: str) -> LoRA:
        prefix = f"{role}.blk.{block}.{name}"
        return LoRA(self.named[f"{prefix}.lora_a"], self.named[f"{prefix}.lora_b"])

    def _lora_expert(self, role: str, block: int) -> LoRAExpert:
        return LoRAExpert(*(self._lora(role, block, name) for name in FFN))

    def _parallel_expert(self, role: str, block: int) -> ParallelExpert:
        return ParallelExpert(*(self.named[f"{role}.blk.{block}.{name}.weight"] for name in FFN))


def _stream(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1
