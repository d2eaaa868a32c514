"""LoRA experts: each the base's MLP with low-rank updates, merged into its own copy when it is exported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from comigs_edge.base.hparams import ARCHITECTURES, FFN, HParams, linear_shapes
from comigs_edge.nn.form import ExpertForm, Start

if TYPE_CHECKING:
    from torch import Tensor

    from comigs_edge.nn.lora import LoRAExpert
    from comigs_edge.nn.mlp import Frozen, Pass
    from comigs_edge.nn.routing import Routing


def low_rank_names(matrices: Sequence[str]) -> tuple[str, ...]:
    """A and B of the update of each of these matrices."""
    return tuple(f"{name}.lora_{half}" for name in matrices for half in "ab")


def low_rank_starts(matrices: Sequence[str], rank: int, hparams: HParams) -> dict[str, Start]:
    """A (R, in), drawn as the paper's code does (kaiming_uniform with a = sqrt(5)), and B (out, R), zero."""
    linear = linear_shapes(hparams)
    pairs = [(Start((rank, linear[name][1]), 1.0), Start((linear[name][0], rank), 0.0)) for name in matrices]
    return dict(zip(low_rank_names(matrices), (start for pair in pairs for start in pair), strict=True))


def _view(tensors: Sequence[Tensor]) -> LoRAExpert:
    from comigs_edge.nn.lora import group

    return group(tensors)[0]


def _mix(
    x: Tensor, normed: Tensor, mlp: Frozen, experts: list[LoRAExpert], routing: Routing | None, scale: float, purpose: Pass
) -> Tensor:
    from comigs_edge.nn.lora_mixture import mixture
    from comigs_edge.nn.merged_mlp import quantised_mixture

    if routing is not None and routing.weights.shape[1] > len(experts):
        experts = [*experts, _zero_expert(experts[0])]
    mix = mixture if purpose.block_format is None else quantised_mixture
    return x + mix(normed, mlp, experts, routing, scale, purpose)


def _zero_expert(like: LoRAExpert) -> LoRAExpert:
    """One whose updates are zero: the base's MLP once more."""
    import torch

    return _view([torch.zeros_like(tensor, requires_grad=False) for update in like for tensor in update])


def _architecture(architecture: str, num_experts: int) -> str:
    known = ARCHITECTURES[architecture]
    return architecture if num_experts == 1 and known.norms_heads else known.mixture


LORA: ExpertForm[LoRAExpert] = ExpertForm(
    names=low_rank_names(FFN),
    starts=lambda layout, shape: low_rank_starts(FFN, layout.rank, shape),
    view=_view,
    mix=_mix,
    scale=lambda layout: layout.scale,
    width=lambda requested, rank, shape: 0,  # the base's
    learning_rate=4e-3,  # the paper's is 2e-3
    optimiser="adamw",
    quantise_start=lambda few_bits: 0.65 if few_bits else 1.0,  # a step costs 1.6 times as much
    is_low_rank=True,
    planner="copies",
    architecture=_architecture,
    describe=lambda layout: f"LoRA of rank {layout.rank}",
)
