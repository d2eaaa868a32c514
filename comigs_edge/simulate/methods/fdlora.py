"""FDLoRA (Qi et al. 2024, arXiv:2406.07925): a personal and a global expert, fused by weights found without gradients.

Three stages: each device trains alone, which gives its personal expert; the global one starts from the mean of those and is
trained, and the mean change is a gradient for Nesterov's momentum (with DiLoCo's values, arXiv:2311.08105); at the end each
device fuses both, A = p A_p + g A_g and B = p B_p + g B_g, with the p and g that have the lowest loss on its validation text.
Every step counts: half the rounds, rounded down, belong to the personal expert. Both trainings have a whole course of the rate
and moments of their own. Not built: the personal expert's later synchronisation. The CoMiGS paper's code tries ten pairs of
weights on one batch, from (0, 0) on, which makes a weak baseline; here the search begins with either expert alone and with equal
weights, so on the validation text the result is never worse than those.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from comigs_edge.simulate.methods.method import Method, Round, all_experts, average
from coordinator.protocol.aggregate import aggregate
from coordinator.protocol.wire import Arrays

Weights = tuple[float, float]  # p, g
STARTS: tuple[Weights, ...] = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))
FIRST_STEP, LAST_STEP = 0.25, 0.1
OUTER_RATE, MOMENTUM = 0.7, 0.9
VELOCITY = "velocity."  # before names of arrays in a memory


def alone(rounds: int) -> int:
    """The round that ends the first stage."""
    return max(1, rounds // 2)


def lowest(loss: Callable[[Weights], float]) -> Weights:
    """Weights by compass search: the best neighbour at a distance of one step; if no neighbour is better, the step is halved."""
    seen = {weights: loss(weights) for weights in STARTS}
    best, step = min(seen, key=lambda weights: seen[weights]), FIRST_STEP
    while step >= LAST_STEP:
        near = [(best[0] + p * step, best[1] + g * step) for p, g in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        seen |= {weights: loss(weights) for weights in near if weights not in seen}
        nearest = min([best, *near], key=lambda weights: seen[weights])
        best, step = nearest, step / 2 if nearest == best else step
    return best


def fuse(personal: Arrays, common: Arrays, weights: Weights) -> Arrays:
    """The sum of both, tensor by tensor."""
    return {name: (weights[0] * array + weights[1] * common[name]).astype("float32") for name, array in personal.items()}


def outer_step(state: Round) -> list[Arrays]:
    """Nesterov's momentum on the mean change; the velocity is in the first device's memory."""
    before, memory = state.before[0], state.memories[0]
    after: Arrays = {}
    for name, mean in average(state)[0].items():
        change = mean - before[name]
        velocity = MOMENTUM * memory.get(VELOCITY + name, np.zeros_like(change)) + change
        memory[VELOCITY + name] = velocity.astype("float32")
        after[name] = (before[name] + OUTER_RATE * (change + MOMENTUM * velocity)).astype("float32")
    return [dict(after) for _ in state.before]


def exchange(state: Round) -> list[Arrays]:
    """The outer step; after the first stage the personal experts are kept, after the last round each device fuses."""
    if state.number == alone(state.rounds):
        now = state.after()
        for memory, arrays in zip(state.memories, now, strict=True):
            memory.update(arrays)
        # They began the round apart, so it is they themselves that are averaged and not what the round changed.
        nothing = {name: np.zeros_like(array) for name, array in now[0].items()}
        mean = [aggregate(nothing, zip(now, state.weights, strict=True))] * len(now)
    else:
        mean = outer_step(state)
    return mean if state.number < state.rounds else [_best(state, device, common) for device, common in enumerate(mean)]


def _best(state: Round, device: int, common: Arrays) -> Arrays:
    personal = {name: array for name, array in state.memories[device].items() if not name.startswith(VELOCITY)}
    return fuse(personal, common, lowest(lambda weights: state.loss(device, fuse(personal, common, weights))))


METHODS = (
    Method(
        "fdlora", "a personal and an averaged expert, fused at the end", shares=all_experts, exchange=exchange,
        first_exchange=alone, lora_only=True, resets_moments=lambda number, rounds: number == alone(rounds),
    ),
)  # fmt: skip
