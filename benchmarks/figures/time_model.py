"""The plan's time model against real steps: `python -m benchmarks.figures.time_model [--steps 3] [--only NAME,...]`.

For each setting the processor is measured as `comigs-edge plan` does it, a step's seconds are predicted, and expert steps on
random tokens are done right after. Writes time-model.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import result_file, write_json
from benchmarks.figures import shapes
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.home.config import BaseConfig, Config, ModelConfig
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import open_base
from comigs_edge.planning import plan as planning
from comigs_edge.planning import rates as measure
from comigs_edge.planning.plan import plan_experts
from comigs_edge.training.batches import Rows
from comigs_edge.training.memory import tune_allocator
from comigs_edge.training.schedule import Schedule
from comigs_edge.training.trainer import Trainer
from profiles import available_cores
from profiles.cost import Plan, step_seconds

SMALL, LARGER = DEFAULT_BASE, "smollm2-360m"
# Base, form, and the plan's lines; `cached`: the outputs of the blocks without experts are there already
SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fastest": (SMALL, "parallel", {}),
    "fastest, 4 x 256": (SMALL, "parallel", {"batch": 4, "context": 256}),
    "fastest, LoRA": (SMALL, "lora", {}),
    "one thread": (SMALL, "parallel", {"threads": 1, "batch": 4}),
    "MLP products kept": (SMALL, "parallel", {"checkpointing": "attention"}),
    "blocks computed again": (SMALL, "parallel", {"checkpointing": "block"}),
    "lean": (SMALL, "parallel", {"keep": False, "checkpointing": "block"}),
    "lean, 4 x 128, LoRA": (SMALL, "lora", {"keep": False, "checkpointing": "block", "batch": 4}),
    "bfloat16": (SMALL, "parallel", {"precision": "bfloat16"}),
    "last 10 blocks": (SMALL, "parallel", {"blocks": 10}),
    "last 10 blocks, cached": (SMALL, "parallel", {"blocks": 10, "cached": 1.0}),
    "360M, 4 x 128": (LARGER, "parallel", {"batch": 4, "checkpointing": "attention"}),
    "360M, lean, 4 x 128": (LARGER, "parallel", {"batch": 4, "keep": False, "checkpointing": "block"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="measured, after one that is not")
    parser.add_argument("--only", default=";".join(SETTINGS), help="settings, with semicolons between them")
    arguments = parser.parse_args()
    tune_allocator()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {SMALL: find_base(SMALL)[1], LARGER: shapes.write(Path(folder) / "b.gguf", shapes.KINDS[LARGER])}
        for name in arguments.only.split(";"):
            base, form, lines = SETTINGS[name]
            rows[name] = _compare(paths[base], form, lines, arguments.steps)
            print(name, rows[name], flush=True)
    table = Table("setting", "predicted s", "measured s", "error")
    for name, row in rows.items():
        table.add_row(name, f"{row['predicted']:.2f}", f"{row['measured']:.2f}", f"{row['error']:+.0%}")
    Console().print(table)
    command = " ".join(["python -m benchmarks.figures.time_model", *sys.argv[1:]])
    figures = {"command": command, "torch": torch.__version__, "settings": rows}
    write_json(result_file("time-model.json"), figures)


def _compare(path: Path, form: str, lines: dict[str, Any], steps: int) -> dict[str, Any]:
    settings = Config(base=BaseConfig("base", "", 0), model=ModelConfig(specialists=1, expert_form=form))
    sizes = planning.sizes(path, settings)
    rates = measure.rates(sizes.width, sizes.ff_width, lines.get("threads", available_cores()), "bfloat16" in lines.values())
    start = Plan(
        specialists=1, batch=8, context=128, threads=rates.threads, precision="float32", keep=True, checkpointing="none",
        memory=0, backend=rates.backend,
    )  # fmt: skip
    plan = replace(start, **lines)
    torch.set_num_threads(plan.threads)
    seconds = _measured(path, replace(settings.model, blocks=plan.blocks), plan, steps)
    predicted, measured = step_seconds(sizes, plan, rates), statistics.median(seconds)
    return {
        "lines": lines, "form": form, "rate": rates.products[plan.precision], "backend": rates.backend, "seconds": seconds,
        "predicted": predicted, "measured": measured, "error": predicted / measured - 1,
    }  # fmt: skip


def _measured(path: Path, experts: ModelConfig, plan: Plan, steps: int) -> list[float]:
    """Seconds of each step, after one that also takes its memory for the first time."""
    base = open_base(path, plan.threads, plan.keep, getattr(torch, plan.precision))
    adapters = Adapters.initial(plan_experts(experts, base.hparams), base.hparams, 0)
    ids = torch.randint(base.hparams.vocab_size, (50_000,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = Rows([Encoded(ids, [True] * len(ids))], plan.context, 0)
    fake = "Q8_0" if experts.expert_form == "parallel" else None  # as a training does by default
    schedule = Schedule(
        steps=10**6, batch=plan.batch, expert_learning_rate=1e-4, final_learning_rate=1e-4, router_learning_rate=1e-4,
        warmup_steps=0, router_period=10**6, router_steps=1, balance_weight=0.0, weight_decay=0.01, validation_rows=1,
        block_format=fake, quantise_start=0.0, optimiser=adapters.form.optimiser,
    )  # fmt: skip
    model = Model(base, adapters, checkpointing=plan.checkpointing)
    stored = _Constant(model, rows.batch(0, plan.batch)) if plan.cached else None
    trainer = Trainer(model, rows, rows, schedule, None if stored is None else (stored, stored))  # type: ignore[arg-type]
    found = []
    for _ in range(1 + steps):
        start = time.perf_counter()
        trainer.step()
        found.append(time.perf_counter() - start)
    return found[1:]


class _Constant:
    """Outputs of the lower blocks that are there already: of one batch, for every batch."""

    def __init__(self, model: Model, batch: Any) -> None:
        self.outputs = model.below(batch.tokens, batch.documents).clone()

    def __call__(self, batch: Any) -> torch.Tensor:
        return self.outputs.clone()


if __name__ == "__main__":
    main()
