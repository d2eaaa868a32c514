"""How fast this device multiplies matrices, in two seconds: with which threads and in which precision."""

from __future__ import annotations

import statistics
import time

import torch

from profiles.cost import Rates

SECONDS = 0.4  # for each number of threads and each precision
TOKENS = 512
FASTER = 1.1  # below, the difference is noise
EXACT = 1e-3  # bfloat16 is off by 0.1 here, float32 by 5e-5


def rates(width: int, ff_width: int, threads: int, has_bfloat16: bool) -> Rates:
    """The rate of products as a block has them, (512, width) x (width, 2 ff_width), and the fastest number of threads.

    Another busy program can make fewer threads the faster ones. Leaves torch with that number.
    """
    found = {count: _rate(width, ff_width, count, torch.float32) for count in sorted({threads, max(1, threads - 1), 1})}
    best = max(found, key=lambda count: found[count])
    products, backend = {"float32": found[best]}, "blas"
    use("onednn")
    if _is_exact() and (rate := _rate(width, ff_width, best, torch.float32)) > FASTER * found[best]:
        products["float32"], backend = rate, "onednn"
    use(backend)
    if has_bfloat16:
        products["bfloat16"] = _rate(width, ff_width, best, torch.bfloat16)
    torch.set_num_threads(best)
    return Rates(products, best, backend)


def use(backend: str) -> None:
    """Computes float32 products with torch's BLAS or with oneDNN (on AMD's processors 1.1 to 1.4 times as fast as MKL)."""
    torch.set_float32_matmul_precision("medium" if backend == "onednn" else "highest")


def _is_exact() -> bool:
    """Whether products are float32's; oneDNN may take bfloat16 where the processor multiplies tiles of it."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 512, generator=generator) for _ in range(2))
    return bool((a @ b.T - (a.double() @ b.double().T)).abs().max() < EXACT)


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
