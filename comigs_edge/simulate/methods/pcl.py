"""PCL (Wagner, Fan, Jaggi 2024, arXiv:2404.09753), strategy 2: trust by validation.

Every device takes the mean of all devices' experts, weighted by the softmax over the negative perplexities that those have on
its own validation text (perplexities, not losses, as in the published code). Each device sends its update and downloads
everybody else's experts to measure them, every round (the published code: every second one after the fourth).
"""

from __future__ import annotations

import math

import numpy as np

from comigs_edge.simulate.methods.method import Method, Round, all_experts
from comigs_edge.simulate.methods.ranks import Floats
from coordinator.protocol.wire import Arrays


def trust(perplexities: list[float]) -> list[float]:
    """Softmax over the negative perplexities."""
    least = min(perplexities)
    shares = [math.exp(least - each) for each in perplexities]
    return [share / sum(shares) for share in shares]


def exchange(state: Round) -> list[Arrays]:
    """Every device gets its own mean."""
    after = state.after()
    results = []
    for device in range(len(after)):
        weights = trust([math.exp(min(700.0, state.loss(device, arrays))) for arrays in after])
        results.append({name: _mean([arrays[name] for arrays in after], weights) for name in after[device]})
    return results


def _mean(arrays: list[Floats], weights: list[float]) -> Floats:
    return np.tensordot(np.array(weights), np.stack(arrays), 1).astype(np.float32)


METHODS = (
    Method(
        "pcl", "one expert, averaged by trust in validation", shares=all_experts, exchange=exchange,
        downloads=lambda devices: devices - 1,
    ),
)  # fmt: skip
