"""What a method decides: which experts a device has, what passes between devices, what the router learns from. Without torch.

A method is a value made of small functions on named arrays; training, wire format and mean are the real fleet's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from comigs_edge.arrays import add
from comigs_edge.nn.experts import ExpertsConfig
from coordinator.protocol.aggregate import add_change, mean_change
from coordinator.protocol.wire import Arrays

Loss = Callable[[int, Arrays], float]  # of a device's validation text with these shared tensors, nats a token


@dataclass(frozen=True)
class Round:
    """What the coordinator has when every device has sent its update. Lists are in the order of the devices."""

    before: list[Arrays]  # each device's shared tensors after the exchange before
    changes: list[Arrays]  # what each has learned since, as it came over the wire
    weights: list[int]  # as `coordinator.protocol.rounds.weight` gives them
    loss: Loss
    number: int = 1  # of this round
    rounds: int = 1  # in all
    # What the method keeps of each device until the next round; it may write into them.
    memories: list[Arrays] = field(default_factory=list)

    def after(self) -> list[Arrays]:
        """The shared tensors of every device, as the coordinator knows them."""
        return [add(before, change) for before, change in zip(self.before, self.changes, strict=True)]


Exchange = Callable[[Round], list[Arrays]]


def average(state: Round) -> list[Arrays]:
    """The same generalist for every device: the weighted mean of the changes (FedAvg, arXiv:1602.05629)."""
    before = state.before[0]
    after = add_change(before, mean_change(before, zip(state.changes, state.weights, strict=True)))
    return [dict(after) for _ in state.before]


def shares_nothing(name: str) -> bool:
    """No tensor is shared."""
    return False


def all_experts(name: str) -> bool:
    """Every expert is shared, and the attention update; the router stays."""
    return not name.startswith("router.")


def mixture(plain: ExpertsConfig, specialists: int) -> ExpertsConfig:
    """A generalist and one specialist on every device."""
    return with_specialists(plain, 1)


def with_specialists(plain: ExpertsConfig, specialists: int) -> ExpertsConfig:
    """A generalist and `specialists` specialists; two experts a token."""
    return replace(plain, num_specialists=specialists, experts_per_token=min(2, 1 + specialists))


def one_expert(plain: ExpertsConfig, specialists: int) -> ExpertsConfig:
    """One expert, as large as each of a mixture's."""
    return with_specialists(plain, 0)


def four_times_the_rank(plain: ExpertsConfig, specialists: int) -> ExpertsConfig:
    """One low-rank expert whose B has as many weights as A and B of two."""
    return replace(with_specialists(plain, 0), rank=4 * plain.rank)


def twice_as_large(plain: ExpertsConfig, specialists: int) -> ExpertsConfig:
    """One expert alone with as many weights as two: twice the rank or width; alpha stays, as in the paper's scripts."""
    return replace(with_specialists(plain, 0), rank=2 * plain.rank, expert_width=2 * plain.expert_width)


@dataclass(frozen=True)
class Method:
    """One method. The defaults are those of a device that is alone with one expert."""

    name: str
    about: str
    layout: Callable[[ExpertsConfig, int], ExpertsConfig] = twice_as_large  # of plain experts and the device's specialists
    shares: Callable[[str], bool] = shares_nothing  # tensors that pass, by name
    exchange: Exchange = average
    freezes: Callable[[str], bool] = shares_nothing  # tensors that pass and that no step trains, by name
    router: str = "validation"  # what it learns from: validation or training text, jointly with the experts; or `even`: never
    text: str = "training"  # what experts learn from: also `both` (and validation text) or `pooled` (of all devices)
    is_product: bool = False  # schedule and experts are those of `comigs-edge train`
    exchanges_first: bool = False  # a round's exchange comes before the router's turn, not after it
    averaging: str | None = None  # a `coordinator.protocol.rounds.Averaging`; None: the recipe's
    lora_only: bool = False
    prunes: bool = False  # trains with HetLoRA's penalty
    downloads: Callable[[int], int] = lambda devices: 1  # models that a device downloads in a round
    first_exchange: Callable[[int], int] | None = None  # of so many rounds the one that ends a stage alone; None: there is none
    # Whether after this round of so many the moments of what has passed are gone: the exchange has made other tensors of them.
    resets_moments: Callable[[int, int], bool] = lambda number, rounds: False
