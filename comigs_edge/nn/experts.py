"""What the adapters of a device look like: how many experts, which tensors, which shapes. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from comigs_edge.base.hparams import Shape, linear_shapes
from comigs_edge.errors import ComigsError
from coordinator.protocol.generalist import may_leave

PARALLEL_SCALE = 4.0  # s of parallel experts; chosen with their start, see `parallel.py`
FFN = ("ffn_gate", "ffn_up", "ffn_down")
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")


@dataclass(frozen=True)
class Layout:
    """What the adapters of one device look like."""

    num_specialists: int = 1
    rank: int = 8
    alpha: float = 16.0
    experts_per_token: int = 2
    attention: bool = False  # a shared low-rank update of the attention, part of the generalist
    form: str = "lora"  # of the experts, one of FORMS
    expert_width: int = 0  # W, of a parallel expert's hidden layer
    blocks: int = 0  # experts are in so many last blocks; 0: in all

    @property
    def num_experts(self) -> int:
        """E: the generalist and the specialists."""
        return 1 + self.num_specialists

    def first_block(self, num_blocks: int) -> int:
        """The number of the first block with experts."""
        return num_blocks - (self.blocks or num_blocks)

    @property
    def scale(self) -> float:
        """Factor on every low-rank update: alpha / sqrt(rank), as in the paper (rank-stabilised LoRA, arXiv:2312.03732)."""
        return self.alpha / math.sqrt(self.rank)

    @property
    def expert_scale(self) -> float:
        """Factor on what an expert adds."""
        return self.scale if self.form == "lora" else PARALLEL_SCALE


def experts_per_token(num_experts: int, requested: int | None = None) -> int:
    """k: `requested`, or 2 by default; raises `ComigsError` where k = 1 would starve the router.

    With k = 1 the softmax over the chosen logits is always 1, so the router would get no gradient at all.
    """
    k = min(2, num_experts) if requested is None else requested
    if not 1 <= k <= num_experts:
        raise ComigsError(f"experts_per_token = {k} does not fit {num_experts} experts; use 2 to {num_experts}")
    if k == 1 and num_experts > 1:
        raise ComigsError(
            f"experts_per_token = 1 with {num_experts} experts would give the router no gradient (its only weight "
            "is always 1), so it would never learn; use 2 or more"
        )
    return k


def roles(layout: Layout) -> list[str]:
    """`generalist`, `specialist.1`, `specialist.2` ... in the order of the experts."""
    return ["generalist", *(f"specialist.{number + 1}" for number in range(layout.num_specialists))]


def generalist_shapes(layout: Layout, shape: Shape) -> dict[str, tuple[int, int]]:
    """Name and shape of the generalist's tensors: what may leave the device."""
    return {name: size for name, size in expected_shapes(layout, shape).items() if may_leave(name)}


def expected_shapes(layout: Layout, shape: Shape) -> dict[str, tuple[int, int]]:
    """Name and shape of every tensor that adapters of this layout have."""
    linear, sizes = linear_shapes(shape), {}
    for block in range(layout.first_block(shape.num_blocks), shape.num_blocks):
        for role in roles(layout):
            low_rank: tuple[str, ...] = FFN if layout.form == "lora" else ()
            if layout.attention and role == "generalist":
                low_rank += ATTENTION
            for name in low_rank:
                out_width, in_width = linear[name]
                sizes[f"{role}.blk.{block}.{name}.lora_a"] = (layout.rank, in_width)
                sizes[f"{role}.blk.{block}.{name}.lora_b"] = (out_width, layout.rank)
            if layout.form == "parallel":
                wide, narrow = (layout.expert_width, shape.width), (shape.width, layout.expert_width)
                for name, size in zip(FFN, (wide, wide, narrow), strict=True):
                    sizes[f"{role}.blk.{block}.{name}.weight"] = size
        if layout.num_specialists:
            sizes[f"router.blk.{block}"] = (layout.num_experts, shape.width)
    return sizes


def is_router(name: str) -> bool:
    """Whether a tensor is the router's; all others are the experts'."""
    return name.startswith("router.")


def check_arrays(arrays: dict[str, Any], layout: Layout, shape: Shape) -> None:
    """Raises `ComigsError` unless `arrays` has the names and shapes that adapters of this layout have."""
    expected = expected_shapes(layout, shape)
    found = {name: array.shape for name, array in arrays.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ComigsError(
                f"adapter tensor {name} has the shape {found.get(name)} where {expected.get(name)} is expected; "
                "train again with: comigs-edge train --fresh"
            )
