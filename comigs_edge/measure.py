"""How fast this device multiplies matrices, in two seconds: with which threads and in which precision."""

from __future__ import annotations

import statistics
import time

import torch

from profiles.plan import Rates

SECONDS = 0.4  # for each number of threads and each precision
TOKENS = 512


def rates(width: int, ff_width: int, threads: int, has_bfloat16: bool) -> Rates:
    """The rate of products as a block has them, (512, width) x (width, 2 ff_width), and the fastest number of threads.

    Another busy program can make fewer threads the faster ones. Leaves torch with that number.
    """
    found = {count: _rate(width, ff_width, count, torch.float32) for count in sorted({threads, max(1, threads - 1), 1})}
    best = max(found, key=lambda count: found[count])
    products = {"float32": found[best]}
    if has_bfloat16:
        products["bfloat16"] = _rate(width, ff_width, best, torch.bfloat16)
    torch.set_num_threads(best)
    return Rates(products, best)


def _rate(width: int, ff_width: int, threads: int, dtype: torch.dtype) -> float:
    """FLOP/s, the median of as many products as fit in the time."""
    torch.set_num_threads(threads)
    x, weight = (torch.ones(rows, width, dtype=dtype) for rows in (TOKENS, 2 * ff_width))
    out = torch.empty(TOKENS, 2 * ff_width, dtype=dtype)
    torch.mm(x, weight.T, out=out)  # what comes first is slower
    seconds: list[float] = []
    while sum(seconds) < SECONDS:
        start = time.perf_counter()
        torch.mm(x, weight.T, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * TOKENS * width * 2 * ff_width / statistics.median(seconds)
