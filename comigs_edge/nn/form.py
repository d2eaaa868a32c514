"""What a form of expert says of itself: everything else knows the forms through this interface alone. Without torch.

A new form is one file that makes an `ExpertForm`, and one row in `experts.FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, Protocol, TypeVar

from comigs_edge.base.hparams import HParams

if TYPE_CHECKING:
    from torch import Tensor

    from comigs_edge.nn.experts import ExpertsConfig
    from comigs_edge.nn.mlp import Frozen, Pass
    from comigs_edge.nn.routing import Routing

E = TypeVar("E")  # one expert's tensors in one block
OptimiserName = Literal["adamw", "muon"]


class Start(NamedTuple):
    """The shape of a trained tensor, and how it is drawn."""

    size: tuple[int, int]  # (out, in)
    spread: float  # uniformly from +-spread / sqrt(in); 0: zeros


class Mix(Protocol[E]):
    """Adds the output of a block's MLP and its experts, which read `normed`, to the residual stream `x`, both (N, D)."""

    def __call__(
        self, x: Tensor, normed: Tensor, mlp: Frozen, experts: list[E], routing: Routing | None, scale: float, purpose: Pass
    ) -> Tensor:
        """`routing` is None for one expert alone; `scale` is the factor on what an expert adds."""


@dataclass(frozen=True, kw_only=True)
class ExpertForm(Generic[E]):
    """One form of expert: values and small functions, of which `view` and `mix` load torch."""

    names: tuple[str, ...]  # of one expert's tensors in a block, in the order in which `view` reads them
    starts: Callable[[ExpertsConfig, HParams], dict[str, Start]]  # for each of `names`
    view: Callable[[Sequence[Tensor]], E]  # one expert in one block, made of its tensors
    mix: Mix[E]
    scale: Callable[[ExpertsConfig], float]  # the factor on what an expert adds
    width: Callable[[int | None, int, HParams], int]  # of an expert's hidden layer: the one asked for, or by LoRA's rank
    learning_rate: float  # of the first expert step, by default
    optimiser: OptimiserName  # of the experts, by default
    # Share of the expert steps before fake quantisation, by default; the argument: whether to fewer bits than Q8_0.
    quantise_start: Callable[[bool], float]
    is_low_rank: bool  # updates of the base's MLP; else tensors beside it, which leave its bytes as they are
    planner: Literal["copies", "beside"]  # of `export.planner`: how a merged file holds the experts
    # The base's architecture and E -> that under which llama.cpp computes the mixture exactly; raises `ComigsError` without one.
    architecture: Callable[[str, int], str]
    describe: Callable[[ExpertsConfig], str]  # in a few words, for the screen
