"""One job of `rivals.py` in a process of its own.

    python -m benchmarks.figures.rival_process '{"job": ...}'

The result is one line of JSON. Torch is imported inside the jobs: what a process takes by torch alone is read off first, and
`rivals.py`, which imports the cases, stays small (a new process inherits the peak memory of the one that starts it).
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SEED = 42


@dataclass(frozen=True)
class Case:
    """One thing to measure: a builder in `rival_models.py` and its keyword arguments."""

    builder: str
    options: dict[str, Any] = field(default_factory=dict)
    passes: int = 4  # operations for a frozen weight and a token: 2 forward, 2 backward, 2 where it is done again
    tuned_allocator: bool = False  # `tune_allocator` as in `comigs-edge train`
    keep: bool = True  # the base's weights, dequantised
    precision: str = "float32"  # of the products
    backend: str = "blas"  # for float32, as the plan has it


# A new way of training is a new line here: keyword arguments that `ours` does not know go to `Model`.
CASES = {
    "published": Case("published"),
    "published-copies": Case("published", {"copies": True}),
    "peft": Case("peft"),
    "peft-checkpointed": Case("peft", {"checkpointing": True}, passes=6),
    **{
        f"ours-{form}{name}": Case("ours", {"form": form, "checkpointing": kept}, 4, True, keep, precision, backend)
        for form in ("lora", "parallel")
        for name, kept, keep, precision, backend in (
            ("", "attention", True, "float32", "onednn"),
            ("-blas", "attention", True, "float32", "blas"),
            ("-none", "none", True, "float32", "onednn"),
            ("-lean", "block", False, "float32", "onednn"),
            ("-bfloat16", "attention", True, "bfloat16", "blas"),
            ("-bfloat16-none", "none", True, "bfloat16", "blas"),
            ("-bfloat16-lean", "block", False, "bfloat16", "blas"),
        )
    },
}


def measure(name: str, options: SimpleNamespace) -> dict[str, Any]:
    """One round of one case: seconds of every step, and the peak memory over what torch takes by itself."""
    import numpy  # noqa: F401
    import torch

    imported = resident()
    torch.set_num_threads(options.threads)
    from benchmarks.figures import rival_models
    from comigs_edge.nn.weights import open_base
    from comigs_edge.planning.rates import use
    from comigs_edge.training.memory import tune_allocator

    case = CASES[name]
    use(case.backend)
    base = open_base(Path(options.base_path), options.threads, case.keep, getattr(torch, case.precision))
    rival = rival_models.BUILDERS[case.builder](base, **case.options)
    if case.tuned_allocator or options.tune_all:
        tune_allocator(lean=not case.keep)
    ready, optimiser, seconds = resident(), rival.optimiser(), []
    for tokens, targets in batches(options.ids):
        start = time.perf_counter()
        for tensor in rival.trainable:
            tensor.grad = None
        loss = rival.loss(tokens, targets)
        loss.backward()
        optimiser.step()
        last = float(loss.detach())
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds[options.warm_up :], "warm_up_seconds": seconds[: options.warm_up], "last_loss": last,
        "peak_bytes": peak() - imported, "ready_bytes": ready - imported, "torch_bytes": imported,
        "trainable_parameters": sum(tensor.numel() for tensor in rival.trainable),
    }  # fmt: skip


def resident() -> int:
    """Bytes of this process that are in memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """The most bytes that were, ever."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def batches(path: str) -> list[tuple[Any, Any]]:
    """Tokens and targets of every step, (B, T) each."""
    import numpy as np
    import torch

    return [tuple(torch.from_numpy(rows[:, part].copy()) for part in (slice(-1), slice(1, None))) for rows in np.load(path)]


def write_tokens(options: SimpleNamespace) -> dict[str, Any]:
    """Writes the ids of all steps: of the text, from its start and again if it is short, or random ones."""
    import numpy as np

    from comigs_edge.base.hparams import read_hparams
    from quantize.gguf_file import GGUFFile

    shape = (options.warm_up + options.steps, options.batch, options.context + 1)
    if options.text is None:
        vocabulary = read_hparams(GGUFFile(Path(options.base_path))).vocab_size
        ids = np.random.default_rng(SEED).integers(0, vocabulary, shape)
    else:
        from comigs_edge import llamacpp

        llama = llamacpp.load(Path(options.base_path), vocab_only=True)
        ids = np.resize(llama.tokenize(Path(options.text).read_bytes(), add_bos=False), shape)
    np.save(options.ids, ids.astype(np.int64))
    return {"tokens": ids.size}


def check(options: SimpleNamespace) -> dict[str, dict[str, float]]:
    """Losses and differences of what must be equal."""
    import torch

    from benchmarks.figures import rival_models
    from comigs_edge.nn.weights import open_base

    torch.set_num_threads(options.threads)
    exact = {name: case for name, case in CASES.items() if case.keep and case.precision == "float32"}
    cases = {name: (case.builder, case.options) for name, case in exact.items()}
    base = open_base(Path(options.base_path), options.threads)
    return rival_models.check(base, *batches(options.ids)[0], cases)


def products(options: SimpleNamespace) -> dict[str, Any]:
    """The rate of the base's own matrix products, forward and backward, done by nothing but `torch.mm`."""
    import torch

    from comigs_edge.base.hparams import linear_shapes, read_hparams
    from quantize.gguf_file import GGUFFile

    torch.set_num_threads(options.threads)
    hparams, count = read_hparams(GGUFFile(Path(options.base_path))), options.batch * options.context
    queries, keys = hparams.num_heads * hparams.head_width, hparams.num_kv_heads * hparams.head_width
    in_block = [
        (queries + 2 * keys, hparams.width), (hparams.width, queries), (2 * hparams.ff_width, hparams.width),
        (hparams.width, hparams.ff_width),
    ]  # fmt: skip
    seconds = operations = 0.0
    for times, size in [*((hparams.num_blocks, size) for size in in_block), (1, (hparams.vocab_size, hparams.width))]:
        seconds += times * product_seconds(count, *size)
        operations += times * 4 * count * size[0] * size[1]
    block = sum(rows * columns for rows, columns in linear_shapes(hparams).values())
    return {
        "operations_per_second": operations / seconds,
        "block_weights": hparams.num_blocks * block,
        "output_weights": hparams.vocab_size * hparams.width,
    }


def product_seconds(count: int, rows: int, columns: int, repeats: int = 3) -> float:
    """Of (count, columns) times a (rows, columns) matrix, and of a gradient (count, rows) back through it."""
    import torch

    weight, x, out = torch.randn(rows, columns), torch.randn(count, columns), torch.randn(count, rows)
    there, back = [], []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        torch.mm(x, weight.T, out=out)
        middle = time.perf_counter()
        torch.mm(out, weight, out=x)
        there.append(middle - start)
        back.append(time.perf_counter() - middle)
        x.normal_()
    return statistics.median(there[1:]) + statistics.median(back[1:])


JOBS = {"tokens": write_tokens, "check": check, "products": products}


def main() -> None:
    options = SimpleNamespace(**json.loads(sys.argv[1]))
    job = JOBS.get(options.job)
    print(json.dumps(job(options) if job else measure(options.job, options)))


if __name__ == "__main__":
    main()
