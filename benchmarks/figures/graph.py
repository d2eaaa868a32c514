"""What a step on a GPU starts, and what it takes with and without a CUDA graph (`--plan cuda_graph=true`), side by side.

    python -m benchmarks.figures.graph [--device cuda] [--rounds 20] [--precision bfloat16]

SmolLM2-135M, 8 x 128 random tokens, two experts of either form as they learn by default, expert and router steps. Without a GPU
only operations are counted: those that the processor would start there. Writes graph.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import open_base, result_file, write_json
from benchmarks.figures.steps import BATCH, CONTEXT
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.home.config import BaseConfig, Config, ModelConfig
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import FORMS, ExpertsConfig, Form
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import Base
from comigs_edge.training.batches import Batch, Rows
from comigs_edge.training.captured import WARM_UP
from comigs_edge.training.schedule import make_schedule
from comigs_edge.training.trainer import Trainer
from profiles import available_cores

# They start nothing: another look at the same memory, or memory that nobody clears.
FREE = {
    "view", "_unsafe_view", "t", "transpose", "permute", "slice", "select", "split", "split_with_sizes", "unbind", "unsqueeze",
    "squeeze", "expand", "alias", "detach", "as_strided", "diagonal", "view_as_complex", "view_as_real", "empty", "empty_like",
    "empty_strided", "new_empty",
}  # fmt: skip


class Counted(TorchDispatchMode):
    """The operations that something starts, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function.name().removeprefix("aten::").split(".")[0]
        if name not in FREE:
            self.names[name] += 1
        return function(*arguments, **(options or {}))


@contextmanager
def gpu_path(base: Base) -> Iterator[None]:
    """A processor takes the GPU's way through the code, where nobody looks at what a batch holds."""
    if base.device.type == "cpu":
        torch.Tensor.is_cuda = True  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        if base.device.type == "cpu":
            del torch.Tensor.is_cuda


def make_trainer(base: Base, form: Form, captures: bool) -> Trainer:
    """Ready for steps of either kind."""
    settings = Config(base=BaseConfig("", "", 0), model=ModelConfig(specialists=1, expert_form=form))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(base.hparams.vocab_size, (2, 50, 2 * CONTEXT), generator=generator).tolist()
    rows = [Rows([Encoded(each, [True] * len(each)) for each in text], CONTEXT, 0) for text in ids]
    layout = ExpertsConfig(form=form, expert_width=FORMS[form].width(None, 8, base.hparams))
    adapters = Adapters.initial(layout, base.hparams, 0).to(base.device)
    model = Model(base, adapters, checkpointing="none", captures=captures)
    one = Trainer(model, rows[0], rows[1], make_schedule(settings, BATCH, 10**6))
    # Every expert learns at a rate of its own, as after the first validation.
    one.scores = [[0.5 + block / 1000, 0.5 - block / 1000] for block in range(base.hparams.num_blocks)]
    return one


def do_step(one: Trainer, kind: str, number: int) -> float:
    """A step of this kind; its loss, on a GPU the step's before."""
    rows = one.training if kind == "expert" else one.router_rows
    batch = rows.batch(number, BATCH)
    assert one.router is not None
    return one._expert_step(batch) if kind == "expert" else one._router_step(one.router, batch)


def count(base: Base, form: Form, kind: str) -> tuple[Counter[str], Counter[str]]:
    """The operations of a step that is not the first, and those of them that a graph would hold."""
    one, counted, inside = make_trainer(base, form, captures=False), Counted(), Counted()

    def backward(batch: Batch) -> Tensor:
        with inside:
            return Trainer._backward(one, batch)

    with gpu_path(base):
        do_step(one, kind, 0)
        one._backward = backward  # type: ignore[method-assign]
        with counted:
            do_step(one, kind, 1)
    return counted.names, inside.names


def compare(base: Base, form: Form, kind: str, rounds: int) -> dict[str, Any]:
    """Seconds of a step on a GPU, plain and captured, in turns; the bytes that each takes; how far the losses are apart."""
    seconds: dict[str, list[float]] = {"plain": [], "captured": []}
    losses: dict[str, list[float]] = {"plain": [], "captured": []}
    trainers, reserved = {}, {}
    for name in seconds:
        before = torch.cuda.memory_reserved()
        trainers[name] = make_trainer(base, form, captures=name == "captured")
        for number in range(WARM_UP + 2):  # the last but one is captured
            losses[name].append(do_step(trainers[name], kind, number))
        reserved[name] = torch.cuda.memory_reserved() - before
    for number in range(WARM_UP + 2, WARM_UP + 2 + rounds):
        for name, one in trainers.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            losses[name].append(do_step(one, kind, number))
            torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    captured = trainers["captured"].captured
    return {
        "seconds": {name: statistics.median(each) for name, each in seconds.items()}, "all_seconds": seconds,
        "reserved": reserved, "problem": None if captured is None else captured.take_problem(),
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(*losses.values(), strict=True)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step on a GPU starts and takes, with and without a CUDA graph.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--precision", default="bfloat16" if torch.cuda.is_available() else "float32")
    arguments = parser.parse_args()
    base = open_base(find_base(DEFAULT_BASE)[1], arguments.device, arguments.precision, available_cores())
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else "counted on a processor"
    table = Table("step", "operations", "in a graph", "plain", "captured", title=f"A step of {BATCH} x {CONTEXT} tokens: {where}")
    rows: dict[str, Any] = {}
    for form in FORMS:
        for kind in ("expert", "router"):
            names, inside = count(base, form, kind)
            row: dict[str, Any] = {"operations": names.total(), "in_graph": inside.total()}
            row |= {"most_common": dict(names.most_common(10))}
            if arguments.device == "cuda":
                row |= compare(base, form, kind, arguments.rounds)
            rows[f"{form} {kind}"] = row
            times = [f"{1000 * each:.1f} ms" for each in row["seconds"].values()] if "seconds" in row else ["not measured"] * 2
            table.add_row(f"{form}, {kind} step", f"{names.total():,}", f"{inside.total():,}", *times)
    Console().print(table)
    figures = {
        "command": " ".join(["python -m benchmarks.figures.graph", *sys.argv[1:]]), "device": where,
        "precision": arguments.precision, "torch": torch.__version__, "steps": rows,
    }  # fmt: skip
    write_json(result_file("graph.json"), figures)


if __name__ == "__main__":
    main()
