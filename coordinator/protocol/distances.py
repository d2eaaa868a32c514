"""Which updates are far from all others, or nearly another's: multi-Krum (arXiv:1703.02757) as an alarm, never a filter.

    score = mean squared distance to the n - f - 2 nearest others, in the median of all scores; f = (n - 3) // 2

Honest updates have like norms and are nearly orthogonal: their scores are about 1. It says who should be looked at; it
decides nothing, so its last bits may differ from machine to machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

LEAST, MOST = 4, 64  # updates that are compared
SAMPLE = 1 << 16  # numbers of a tensor that are looked at, evenly spread: they are in memory for all updates at once
FAR, NEAR = 3.0, 0.1  # scores above and below which a device is named
Array = npt.NDArray[np.float32]


def sample(change: Array) -> Array:
    """The numbers of a tensor that are looked at, (n,)."""
    return change.reshape(-1)[:: max(1, -(-change.size // SAMPLE))].copy()


def scores(tensors: Iterable[Sequence[Array | None]]) -> list[float]:
    """The score of each update; `tensors` yields the `sample` of each tensor of all updates, None where one does not hold it.

    An update that is nearly another's has that small distance in place of the mean.
    """
    gram: npt.NDArray[np.float64] | float = 0.0
    for changes in tensors:
        size = next((change.size for change in changes if change is not None), 0)
        stacked = np.stack([np.zeros(size, np.float32) if change is None else change for change in changes])
        gram = gram + (stacked @ stacked.T).astype(np.float64)
    if isinstance(gram, float):
        return []
    return _scores(np.maximum(gram.diagonal()[:, None] + gram.diagonal() - 2 * gram, 0))


def _scores(squares: npt.NDArray[np.float64]) -> list[float]:
    """From squared distances (n, n)."""
    count = len(squares)
    others = np.sort(squares + np.diag(np.full(count, np.inf)), 1)[:, :-1]
    means = others[:, : count - (count - 3) // 2 - 2].mean(1)
    usual = np.median(means)
    if not usual:
        return [1.0] * count  # most are the same: nothing is unusual
    nearest = others[:, 0] / usual
    return [float(score) for score in np.where(nearest < NEAR, nearest, means / usual)]
