"""Where the time of an expert step goes, by torch's own profiler: products, attention, the rest of the operations, optimiser.

    python -m benchmarks.figures.profile [--steps 3] [--threads N] [--precision bfloat16]

SmolLM2-135M, 8 x 128 random tokens, two experts of either form; parallel ones as they learned before, by AdamW, and as they do
now. Writes profile.json.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.common import result_file, write_json
from benchmarks.figures.steps import BATCH, CONTEXT, Step
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.nn.weights import open_base
from comigs_edge.training.memory import tune_allocator
from comigs_edge.training.trainer import OPTIMISERS
from profiles import available_cores

# Of an operation's name, in this order.
KINDS = {
    "products": ("aten::mm", "aten::addmm"), "attention": ("bmm", "softmax", "attention", "logsumexp"),
    "copies and casts": ("copy_", "clone", "cat", "contiguous"), "gathers": ("index", "gather", "scatter", "embedding"),
}  # fmt: skip
STEPS = (("lora", "adamw"), ("parallel", "adamw"), ("parallel", "muon"))
OPTIMISER = "the optimiser's step"


def kind_of(name: str) -> str:
    """What kind of work an operation is."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other element-wise")


def shares(step: Step, steps: int) -> dict[str, float]:
    """Seconds of a step by kind of work; that of the optimiser is counted apart, whatever it is made of."""
    step.seconds()
    take = step.optimiser.step

    def watched() -> None:
        with record_function(OPTIMISER):
            take()

    step.optimiser.step = watched  # type: ignore[method-assign]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step.seconds()
    spent: Counter[str] = Counter()
    for event in profiler.events():
        kind = OPTIMISER if _is_within(event, OPTIMISER) else kind_of(event.name)
        spent[kind] += event.self_cpu_time_total / 1e6 / steps
    return dict(spent.most_common())


def _is_within(event: torch.autograd.profiler_util.FunctionEvent | None, name: str) -> bool:
    while event is not None:
        if event.name == name:
            return True
        event = event.cpu_parent
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of an expert step goes.")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--precision", default="bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = open_base(find_base(DEFAULT_BASE)[1], arguments.threads, dtype=getattr(torch, arguments.precision))
    tune_allocator()
    found = {}
    for form, optimiser in STEPS:
        step = Step(base, form, 1, router=False)
        step.optimiser = OPTIMISERS[optimiser](step.tensors, 1e-3, 0.01)
        name = f"{form}, {optimiser}"
        found[name] = shares(step, arguments.steps)
        total = sum(found[name].values())
        table = Table("kind of work", "seconds", "share", title=f"An expert step, {name}, {BATCH} x {CONTEXT}")
        for kind, seconds in found[name].items():
            table.add_row(kind, f"{seconds:.3f}", f"{seconds / total:.0%}")
        Console().print(table)
    figures = {
        "command": " ".join(["python -m benchmarks.figures.profile", *sys.argv[1:]]), "threads": arguments.threads,
        "precision": arguments.precision, "torch": torch.__version__, "seconds": found,
    }  # fmt: skip
    write_json(result_file("profile.json"), figures)


if __name__ == "__main__":
    main()
