"""How fast this device multiplies matrices, in two seconds: on what, with which threads and in which precision."""

from __future__ import annotations

import statistics
import time

import torch

from comigs_edge.errors import ComigsError
from profiles.cost import Backend, Precision, Processor, Rates

SECONDS = 0.4  # for each number of threads and each precision
TOKENS = 512
FASTER = 1.1  # below, the difference is noise
EXACT = 1e-3  # bfloat16 is off by 0.1 here, float32 by 5e-5


def rates(width: int, ff_width: int, threads: int, has_bfloat16: bool) -> Rates:
    """The rate of products as a block has them, (512, width) x (width, 2 ff_width), and the fastest number of threads.

    Another busy program can make fewer threads the faster ones. Leaves torch with that number.
    """
    by_threads = {count: _rate(width, ff_width, count, torch.float32) for count in sorted({threads, max(1, threads - 1), 1})}
    best = max(by_threads, key=by_threads.__getitem__)
    products: dict[Precision, float] = {"float32": by_threads[best]}
    backend: Backend = "blas"
    use("onednn")
    if _is_exact() and (rate := _rate(width, ff_width, best, torch.float32)) > FASTER * by_threads[best]:
        products["float32"], backend = rate, "onednn"
    use(backend)
    if has_bfloat16:
        products["bfloat16"] = _rate(width, ff_width, best, torch.bfloat16)
    torch.set_num_threads(best)
    return Rates(products=products, threads=best, backend=backend)


def choose_device(wanted: str | None, has_gpu: bool) -> Processor:
    """Where products are computed, cpu or cuda: `wanted`, or the GPU if there is one that torch can use.

    Raises `ComigsError` for a GPU that is wanted and that torch cannot use.
    """
    usable = (has_gpu or wanted == "cuda") and torch.cuda.is_available()
    if wanted == "cuda" and not usable:
        raise ComigsError(
            f"device = cuda is asked for and torch {torch.__version__} sees no CUDA device; install a build of torch with CUDA, "
            "or train with: --plan device=cpu"
        )
    return "cuda" if usable and wanted != "cpu" else "cpu"


def gpu_rates(width: int, ff_width: int, threads: int) -> Rates:
    """The rate of the same products on the GPU, and the bytes that are free there."""
    products: dict[Precision, float] = {"float32": _rate(width, ff_width, threads, torch.float32, "cuda")}
    if torch.cuda.is_bf16_supported():
        products["bfloat16"] = _rate(width, ff_width, threads, torch.bfloat16, "cuda")
    return Rates(products=products, threads=threads, device="cuda", gpu_memory=torch.cuda.mem_get_info()[0])


def use(backend: Backend) -> None:
    """Computes float32 products with torch's BLAS or with oneDNN (on AMD's processors 1.1 to 1.4 times as fast as MKL)."""
    torch.set_float32_matmul_precision("medium" if backend == "onednn" else "highest")


def _is_exact() -> bool:
    """Whether products are float32's; oneDNN may take bfloat16 where the processor multiplies tiles of it."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 512, generator=generator) for _ in range(2))
    return bool((a @ b.T - (a.double() @ b.double().T)).abs().max() < EXACT)


def _rate(width: int, ff_width: int, threads: int, dtype: torch.dtype, device: str = "cpu") -> float:
    """FLOP/s, the median of as many products as fit in the time."""
    torch.set_num_threads(threads)
    x, weight = (torch.ones(rows, width, dtype=dtype, device=device) for rows in (TOKENS, 2 * ff_width))
    out = torch.empty(TOKENS, 2 * ff_width, dtype=dtype, device=device)
    torch.mm(x, weight.T, out=out)  # what comes first is slower
    seconds: list[float] = []
    while sum(seconds) < SECONDS:
        start = time.perf_counter()
        torch.mm(x, weight.T, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * TOKENS * width * 2 * ff_width / statistics.median(seconds)
