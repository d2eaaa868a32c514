"""Parallel experts: each its own small MLP beside the base's, whose bytes an exported file keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from comigs_edge.base.hparams import ARCHITECTURES, FFN, HParams
from comigs_edge.errors import ComigsError
from comigs_edge.nn.form import ExpertForm, Start

if TYPE_CHECKING:
    from torch import Tensor

    from comigs_edge.nn.experts import ExpertsConfig
    from comigs_edge.nn.mlp import Frozen, Pass
    from comigs_edge.nn.parallel import ParallelExpert
    from comigs_edge.nn.routing import Routing

# Chosen on German text, 24 steps of 512 tokens from 1.810 bits per byte, learning rate 1.2e-2: 1.638. A third of this width of
# the start gave 1.645, rows of the base's own gate and up 1.640 to 1.656, half the scale 1.642; LoRA gives 1.634.
SCALE = 4.0
SPREAD = 3.0  # gate and up are drawn uniformly from +-SPREAD / sqrt(D); down is zero
NAMES = tuple(f"{name}.weight" for name in FFN)


def _starts(layout: ExpertsConfig, hparams: HParams) -> dict[str, Start]:
    wide, narrow = (layout.expert_width, hparams.width), (hparams.width, layout.expert_width)
    return dict(zip(NAMES, (Start(wide, SPREAD), Start(wide, SPREAD), Start(narrow, 0.0)), strict=True))


def _width(requested: int | None, rank: int, hparams: HParams) -> int:
    """W; by default one with about as many weights as LoRA of this rank, and a multiple of 32, as blocks are.

    LoRA on gate, up and down has 3 rank (D + F) weights, a parallel expert 3 W D.
    """
    if requested is not None:
        return requested
    return max(1, round(rank * (hparams.width + hparams.ff_width) / hparams.width / 32)) * 32


def _view(tensors: Sequence[Tensor]) -> ParallelExpert:
    from comigs_edge.nn.parallel import ParallelExpert

    return ParallelExpert(*tensors)


def _mix(
    x: Tensor, normed: Tensor, mlp: Frozen, experts: list[ParallelExpert], routing: Routing | None, scale: float, purpose: Pass
) -> Tensor:
    from comigs_edge.nn.merged_mlp import frozen_mlp
    from comigs_edge.nn.parallel import small_experts

    weights = None if routing is None else routing.weights
    small = small_experts(normed, experts, weights, scale, purpose.block_format)
    return x + frozen_mlp(normed, mlp, purpose) + small


def _architecture(architecture: str, num_experts: int) -> str:
    compact = ARCHITECTURES[architecture].compact
    if compact is None:
        raise ComigsError(
            f"llama.cpp has no architecture for parallel experts beside a {architecture} base; use LoRA experts: "
            "comigs-edge init --expert-form lora"
        )
    return compact


PARALLEL: ExpertForm[ParallelExpert] = ExpertForm(
    names=NAMES,
    starts=_starts,
    view=_view,
    mix=_mix,
    scale=lambda layout: SCALE,
    width=_width,
    learning_rate=1.2e-2,
    optimiser="muon",
    quantise_start=lambda few_bits: 0.0,  # it costs nothing
    is_low_rank=False,
    planner="beside",
    architecture=_architecture,
    describe=lambda layout: f"parallel, {layout.expert_width} wide",
)
