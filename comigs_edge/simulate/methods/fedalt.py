"""FedALT (Bian et al. 2026, arXiv:2503.11880): an individual expert that is never overwritten, and the mean of all the others'.

The individual expert (here the specialist) is trained; the rest-of-world one (here the generalist) is the mean of the other
devices' individual experts, A and B separately, and no step changes it. A mixer weighs both for each token; it learns with the
individual expert, from training text.
"""

from __future__ import annotations

from comigs_edge.simulate.methods.method import Method, Round, all_experts, mixture
from coordinator.protocol.aggregate import Mean
from coordinator.protocol.generalist import may_leave
from coordinator.protocol.wire import Arrays

REST, OWN = "generalist.", "specialist.1."


def exchange(state: Round) -> list[Arrays]:
    """Every device gets the mean of the others' individual experts."""
    own = [{name.replace(OWN, REST): array for name, array in arrays.items() if name.startswith(OWN)} for arrays in state.after()]
    return [_mean_of_others(own, state.weights, device) for device in range(len(own))]


def _mean_of_others(own: list[Arrays], weights: list[int], device: int) -> Arrays:
    mean = Mean()
    for other, (arrays, weight) in enumerate(zip(own, weights, strict=True)):
        if other != device:
            mean.add(arrays, weight)
    return mean.apply({name: 0 * array for name, array in own[device].items()})


METHODS = (
    Method(
        "fedalt", "an individual expert and the frozen mean of the others'", mixture, all_experts, exchange, router="jointly",
        freezes=may_leave, lora_only=True,
    ),
)  # fmt: skip
