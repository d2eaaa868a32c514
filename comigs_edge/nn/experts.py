"""What the adapters of a device look like: how many experts, which tensors, which shapes. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from comigs_edge.base.hparams import ARCHITECTURES, ATTENTION, HParams
from comigs_edge.errors import ComigsError
from comigs_edge.nn.form import ExpertForm, Start
from comigs_edge.nn.lora_form import LORA, low_rank_starts
from comigs_edge.nn.parallel_form import PARALLEL
from coordinator.protocol.generalist import may_leave

Form = Literal["lora", "parallel"]
FORMS: dict[str, ExpertForm[Any]] = {"lora": LORA, "parallel": PARALLEL}
ROUTER = "router."


def default_form(architecture: str) -> Form:
    """The form of a new home: parallel wherever llama.cpp can run it beside a base of this architecture."""
    return "parallel" if ARCHITECTURES[architecture].compact else "lora"


@dataclass(frozen=True)
class ExpertsConfig:
    """What the adapters of one device look like."""

    num_specialists: int = 1
    rank: int = 8
    alpha: float = 16.0
    experts_per_token: int = 2
    attention: bool = False  # a shared low-rank update of the attention, part of the generalist
    form: Form = "lora"
    expert_width: int = 0  # W, of a parallel expert's hidden layer
    blocks: int = 0  # number of final blocks that have experts; 0: all
    zero_expert: bool = False  # the router may also choose an expert that adds nothing (Jin et al. 2024, arXiv:2410.07348)

    @property
    def num_experts(self) -> int:
        """E: the generalist and the specialists."""
        return 1 + self.num_specialists

    @property
    def num_choices(self) -> int:
        """Logits of the router for a token: of the experts, and behind them of the zero expert if there is one."""
        return self.num_experts + self.zero_expert

    def with_zero(self) -> ExpertsConfig:
        """The same experts with a zero expert; a generalist alone then needs a router that chooses both."""
        return replace(self, zero_expert=True, experts_per_token=max(2, self.experts_per_token))

    def without_zero(self) -> ExpertsConfig:
        """The same experts without a zero expert: what generalist and specialists learn in."""
        return replace(self, zero_expert=False, experts_per_token=min(self.experts_per_token, self.num_experts))

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
        return FORMS[self.form].scale(self)


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


def roles(layout: ExpertsConfig) -> list[str]:
    """`generalist`, `specialist.1`, `specialist.2` ... in the order of the experts."""
    return ["generalist", *(f"specialist.{number + 1}" for number in range(layout.num_specialists))]


def generalist_shapes(layout: ExpertsConfig, hparams: HParams) -> dict[str, tuple[int, int]]:
    """Name and shape of the generalist's tensors: what may leave the device."""
    return {name: size for name, size in expected_shapes(layout, hparams).items() if may_leave(name)}


def expected_shapes(layout: ExpertsConfig, hparams: HParams) -> dict[str, tuple[int, int]]:
    """Name and shape of every tensor that adapters of this layout have."""
    return {name: start.size for name, start in starts(layout, hparams).items()}


def starts(layout: ExpertsConfig, hparams: HParams) -> dict[str, Start]:
    """Name, shape and start of every tensor that adapters of this layout have; `Adapters.initial` draws routers otherwise."""
    expert = FORMS[layout.form].starts(layout, hparams)
    attention = low_rank_starts(ATTENTION, layout.rank, hparams) if layout.attention else {}
    every: dict[str, Start] = {}
    for block in range(layout.first_block(hparams.num_blocks), hparams.num_blocks):
        for role in roles(layout):
            tensors = {**expert, **attention} if role == "generalist" else expert
            every |= {f"{role}.blk.{block}.{name}": start for name, start in tensors.items()}
        if layout.num_choices > 1:
            every[f"{ROUTER}blk.{block}"] = Start((layout.num_choices, hparams.width), math.nan)
    return every


def is_router(name: str) -> bool:
    """Whether a tensor is the router's; all others are the experts'."""
    return name.startswith(ROUTER)


def check_arrays(arrays: dict[str, Any], layout: ExpertsConfig, hparams: HParams) -> None:
    """Raises `ComigsError` unless `arrays` has the names and shapes that adapters of this layout have."""
    expected = expected_shapes(layout, hparams)
    shapes = {name: array.shape for name, array in arrays.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise ComigsError(
                f"adapter tensor {name} has the shape {shapes.get(name)} where {expected.get(name)} is expected; "
                "train again with: comigs-edge train --fresh"
            )
