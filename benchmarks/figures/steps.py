"""What a step takes: two and four experts, expert and router step, float32 and bfloat16, side by side in one process.

    python -m benchmarks.figures.steps [--rounds 5] [--threads N] [--precision float32]

SmolLM2-135M, 8 x 128 random tokens. Writes steps.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import result_file, write_json
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import FORMS, ExpertsConfig
from comigs_edge.nn.loss import next_token_loss
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import Base, open_base
from comigs_edge.training.adamw import AdamW
from comigs_edge.training.memory import tune_allocator
from profiles import available_cores

BATCH, CONTEXT = 8, 128


class Step:
    """One kind of step, ready to be done again and again."""

    def __init__(self, base: Base, form: str, specialists: int, router: bool) -> None:
        width = FORMS[form].width(None, 8, base.hparams)
        layout = ExpertsConfig(num_specialists=specialists, form=form, expert_width=width)
        adapters = Adapters.initial(layout, base.hparams, 0)
        self.tensors = adapters.group(router)
        self.model = Model(base, adapters, checkpointing="attention")
        self.optimiser = AdamW(self.tensors, 1e-3, 0.01)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(base.hparams.vocab_size, (BATCH, CONTEXT + 1), generator=generator)
        self.tokens, self.targets = ids[:, :-1], ids[:, 1:].flatten()

    def seconds(self) -> float:
        """Of one step."""
        start = time.perf_counter()
        for tensor in self.tensors:
            tensor.requires_grad_(True).grad = None
        balanced = self.model.adapters is not None and self.model.adapters.layout.num_experts > 2
        out = self.model(self.tokens, with_balance=balanced)
        loss = next_token_loss(self.model.base, out.hidden, self.targets, torch.ones(len(self.targets), dtype=torch.bool))
        (loss if out.balance is None else loss + 0.01 * out.balance).backward()
        self.optimiser.step()
        for tensor in self.tensors:
            tensor.requires_grad_(False)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--precision", default="float32,bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = find_base(DEFAULT_BASE)[1]
    bases = {name: open_base(path, arguments.threads, dtype=getattr(torch, name)) for name in arguments.precision.split(",")}
    tune_allocator()
    kinds = itertools.product(bases, ("lora", "parallel"), ((1, False), (1, True), (3, False)))
    steps = {
        f"{form} {1 + specialists} experts {'router' if router else 'expert'} step {precision}": Step(
            bases[precision], form, specialists, router
        )
        for precision, form, (specialists, router) in kinds
    }
    for step in steps.values():
        step.seconds()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            times[name].append(step.seconds())
    _report(times, arguments)


def _report(times: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    rows: dict[str, Any] = {}
    table = Table("step", "seconds", "spread", "tokens/s", "against two experts' expert step")
    for name, seconds in times.items():
        form, precision = name.split()[0], name.split()[-1]
        reference = times[f"{form} 2 experts expert step {precision}"]
        ratio = statistics.median(a / b for a, b in zip(seconds, reference, strict=True))
        median = statistics.median(seconds)
        rows[name] = {"seconds": median, "min": min(seconds), "max": max(seconds), "ratio": ratio}
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        table.add_row(name, f"{median:.2f}", spread, f"{BATCH * CONTEXT / median:.0f}", f"{ratio:.2f}")
    Console().print(table)
    figures = {
        "command": " ".join(["python -m benchmarks.figures.steps", *sys.argv[1:]]),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "steps": rows,
    }
    write_json(result_file("steps.json"), figures)


if __name__ == "__main__":
    main()
