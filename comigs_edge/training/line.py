"""States on the straight line from one to another.

A training that goes on moves fast towards its new text and away from the old: a part of the way is most of the gain and little of
the loss (as with WiSE-FT, arXiv:2109.01903). docs/results.md has what was measured.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from comigs_edge.nn.adapters import Adapters
from comigs_edge.training.schedule import ON_THE_WAY
from coordinator.protocol.wire import Arrays


@torch.no_grad()
def find_share(adapters: Adapters, start: Arrays, loss: float, measure: Callable[[], float]) -> tuple[float, float]:
    """How much of the way from `start` to where `adapters` are has the lowest loss, and that loss.

    At the end `loss` is known, at each of `ON_THE_WAY` it is `measure`d. The adapters are where they were again.
    """
    end, losses = adapters.arrays(), dict[float, float]()
    for share in ON_THE_WAY:
        for name, tensor in adapters.named.items():  # one after the other: no third copy of all
            tensor.copy_(torch.from_numpy(_between(start[name], end[name], share)))
        losses[share] = measure()
    adapters.load_arrays(end)
    losses[1.0] = loss  # the last: one that is no number is less than none
    return min(losses.items(), key=lambda found: found[1])


def part_of_way(start: Arrays, end: Arrays, share: float) -> Arrays:
    """What stands at this share of the way; `end` is used up."""
    for name in end if share < 1 else ():
        end[name] = _between(start[name], end[name], share)
    return end


def _between(start: npt.NDArray[np.float32], end: npt.NDArray[np.float32], share: float) -> npt.NDArray[np.float32]:
    # In this form what did not move stays as it is to the last bit.
    return end - np.float32(1 - share) * (end - start)
