"""What the adapters of a device look like: how many experts, which tensors, which shapes. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from comigs_edge.config import ModelConfig
from comigs_edge.errors import ComigsError
from comigs_edge.shape import Shape, linear_shapes
from profiles import DeviceProfile

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

    @property
    def num_experts(self) -> int:
        """E: the generalist and the specialists."""
        return 1 + self.num_specialists

    @property
    def scale(self) -> float:
        """Factor on every low-rank update: alpha / sqrt(rank), as in the paper (rank-stabilised LoRA, arXiv:2312.03732)."""
        return self.alpha / math.sqrt(self.rank)


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


def planned(model: ModelConfig, profile: DeviceProfile) -> Layout:
    """What the settings ask for on this device; raises `ComigsError` for a router that could not learn."""
    specialists = profile.specialists if model.specialists is None else model.specialists
    k = experts_per_token(1 + specialists, model.experts_per_token)
    return Layout(specialists, model.rank, model.alpha, k, model.attention)


def roles(layout: Layout) -> list[str]:
    """`generalist`, `specialist.1`, `specialist.2` ... in the order of the experts."""
    return ["generalist", *(f"specialist.{number + 1}" for number in range(layout.num_specialists))]


def expected_shapes(layout: Layout, shape: Shape) -> dict[str, tuple[int, int]]:
    """Name and shape of every tensor that adapters of this layout have."""
    linear, sizes = linear_shapes(shape), {}
    for block in range(shape.num_blocks):
        for role in roles(layout):
            names = FFN + ATTENTION if layout.attention and role == "generalist" else FFN
            for name in names:
                out_width, in_width = linear[name]
                sizes[f"{role}.blk.{block}.{name}.lora_a"] = (layout.rank, in_width)
                sizes[f"{role}.blk.{block}.{name}.lora_b"] = (out_width, layout.rank)
        if layout.num_specialists:
            sizes[f"router.blk.{block}"] = (layout.num_experts, shape.width)
    return sizes
