"""One trial after another on one base: trains, measures, and returns the record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.trials import learning
from benchmarks.trials.catalogue import SAMPLES, SOURCES, TOKENS, Small, Trial, Zero, person_name
from benchmarks.trials.learning import SEED, FixedOffset, Mixed, Rehearsing, Sized
from benchmarks.trials.sampling import samples
from benchmarks.trials.text import MEASURED, OTHERS, Inputs
from comigs_edge import files
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.model import Model
from comigs_edge.nn.routing_stats import MeanWeights
from comigs_edge.nn.weights import Base
from comigs_edge.nn.writing import write
from comigs_edge.planning.plan import plan_experts
from comigs_edge.simulate.device import new_model
from comigs_edge.simulate.texts import limit
from comigs_edge.training.adamw import AdamW
from comigs_edge.training.batches import Rows
from comigs_edge.training.schedule import Schedule, make_schedule
from comigs_edge.training.silence import fit_zero
from comigs_edge.training.trainer import Trainer
from comigs_edge.training.validation import batch_loss

ANSWER = 40  # tokens of an answer, at most
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is; `TINY` shows that it runs."""

    context: int = 128
    tokens: int = TOKENS  # of training text
    samples: int = SAMPLES  # tokens of each source
    sample_rows: int = 300  # written at once
    rows: int = 8  # of a step of the zero expert's trials
    closing: float = 1.0  # factor on the steps of a closing phase
    measured: int = 64  # rows of each text
    instructions: int = 64
    points: int = 12  # of a validation curve


TINY = Scale(
    context=32, tokens=256, samples=150, sample_rows=3, rows=4, closing=0.05, measured=1, instructions=2, points=2
)  # fmt: skip


class Workshop:
    """A base, the text, and the folder of the records; what trials share lies in its folder `cache`."""

    def __init__(self, base: Base, inputs: Inputs, records: Path, scale: Scale) -> None:
        self.base, self.inputs, self.records, self.scale = base, inputs, records, scale
        self.cache = records / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.rows, self.answers = cache(self._rows), cache(self._answers)

    def run(self, trial: Trial) -> Record:
        """The record of a trial."""
        start = time.monotonic()
        works: dict[str, Callable[[Trial], Record]] = {
            "base": self.of_base, "samples": self.of_samples, "person": self.of_person, "zero": self.of_zero,
            "small": self.of_small,
        }  # fmt: skip
        record = works[trial.kind](trial)
        where = torch.cuda.get_device_name() if self.base.device.type == "cuda" else "cpu"
        seconds = round(time.monotonic() - start, 2)
        return {"trial": trial.name, "kind": trial.kind, **trial.factors, **record, "seconds": seconds, "device": where}

    # Text ---------------------------------------------------------------------------------------------------------

    def _rows(self, name: str, split: str) -> Rows:
        return Rows(self.inputs.documents(name, split), self.scale.context, SEED)

    def ordinary(self, factors: Zero) -> Rows:
        """Ordinary text."""
        if factors.source == "others":
            sources = [self.inputs.documents(name, "training") + self.inputs.documents(name, "validation") for name in OTHERS]
        else:
            names = SOURCES if factors.source == "mixed" else (factors.source,)
            tables = [json.loads((self.cache / f"samples-{name}.json").read_text()) for name in names]
            sources = [[Encoded(*each) for each in table] for table in tables]
        kept = [each for source in sources for each in limit(source, factors.tokens // len(sources))]
        return Rows(kept, self.scale.context, SEED)

    def of_samples(self, trial: Trial) -> Record:
        """The base's own text, kept in `cache`."""
        made = samples(self.base, trial.factors["source"], self.inputs.table, self.scale.samples, self.scale.sample_rows)
        (self.cache / f"{trial.name}.json").write_text(json.dumps(made))
        return {"tokens": sum(len(each.ids) for each in made), "documents": len(made)}

    # Measures -----------------------------------------------------------------------------------------------------

    def nats(self, model: Model, rows: Rows, count: int) -> float:
        """Mean loss in nats a token of the first rows."""
        total, tokens = 0.0, 0
        with torch.no_grad():
            for batch in rows.first(count, 64):
                total += float(batch_loss(model, batch)[0])
                tokens += batch.num_scored
        return total / tokens

    def measure(self, model: Model) -> Record:
        """Nats a token of every text, the zero expert's mean weight there, and how the model follows instructions."""
        record: Record = {"nats": {}, "last_weight": {}}
        for name in MEASURED:
            watch = MeanWeights()
            model.watch = watch
            record["nats"][name] = self.nats(model, self.rows(name, "test"), self.scale.measured)
            weights = watch.by_block()
            record["last_weight"][name] = None if weights is None else float(np.mean(weights, 0)[-1])
        model.watch = None
        return record if model.adapters is None else record | self._instructions(model)

    @torch.no_grad()
    def _instructions(self, model: Model) -> Record:
        """KL divergence from the base on its own answers, and the share that the model would give itself."""
        tokens, answered = self.answers()
        passes = Model(self.base, None)(tokens).hidden[answered], model(tokens).hidden[answered]
        parts = list(zip(*(torch.split(hidden, 512) for hidden in passes), strict=True))  # logits take memory
        divergence = torch.cat([learning.divergence(model, *part) for part in parts])
        said = torch.cat([model.logits(hidden).argmax(-1) for _, hidden in parts])
        rows, places = answered.view(len(tokens), -1).nonzero(as_tuple=True)
        wrong = set(rows[said != tokens[rows, places + 1]].tolist())
        return {"instructions_kl": float(divergence.mean()), "instructions_same": 1 - len(wrong) / len(tokens)}

    def _answers(self) -> tuple[Tensor, Tensor]:
        """Instructions with the base's answers, padded (B, T), and the places (B * T,) that an answer's token comes behind."""
        path = self.cache / "answers.json"
        while not path.exists():  # the base's trial is at it
            time.sleep(0.2)
        answers, prompts = json.loads(path.read_text()), self.inputs.table["instructions"]
        tokens = torch.zeros(len(answers), max(map(len, answers)), dtype=torch.long)
        answered = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=False)):
            tokens[row, : len(answer)] = torch.tensor(answer)
            answered[row, len(prompt) - 1 : len(answer) - 1] = True
        return tokens.to(self.base.device), answered.flatten().to(self.base.device)

    def of_base(self, trial: Trial) -> Record:
        """The base as it is, and its greedy answers, kept in `cache`."""
        table = self.inputs.table
        prompts = table["instructions"][: self.scale.instructions]
        answers = write(self.base, prompts, max(map(len, prompts)) + ANSWER, 0.0, table["ends"])
        files.write_atomic(self.cache / "answers.json", json.dumps(answers).encode())  # others wait for the file
        return self.measure(Model(self.base, None)) | {"answers": len(answers)}

    # The zero expert ----------------------------------------------------------------------------------------------

    def schedule(self) -> Schedule:
        """The product's, for one person."""
        return make_schedule(
            learning.settings(), self.scale.rows, max(1, self.scale.tokens // (self.scale.rows * self.scale.context))
        )

    def layout(self, specialists: int) -> ExpertsConfig:
        """The product's, for this base."""
        return plan_experts(learning.settings(specialists).model, self.base.hparams)

    def trainer(self, person: str, adapters: Adapters, schedule: Schedule) -> Rehearsing:
        """A trainer on one person's text."""
        model = new_model(self.base, adapters, schedule.batch * self.scale.context)
        return Rehearsing(model, self.rows(person, "training"), self.rows(person, "validation"), schedule)

    def of_person(self, trial: Trial) -> Record:
        """One person's model without a zero expert, kept in `cache`."""
        layout = self.layout(trial.factors["specialists"])
        initial = Adapters.initial(layout, self.base.hparams, SEED)
        trainer = self.trainer(trial.factors["person"], initial, self.schedule())
        finish(trainer)
        np.savez(self.cache / f"{trial.name}.npz", **trainer.best)
        return {"validation": trainer.best_loss, **self.measure(trainer.model)}

    def of_zero(self, trial: Trial) -> Record:
        """A personal model with a zero expert; `before`, where it was trained for this, that without."""
        person, factors = trial.person_and(Zero)
        ordinary, record = self.ordinary(factors), Record()
        if factors.closing and not factors.experts:
            arrays = dict(np.load(self.cache / f"{person_name(person, factors.specialists)}.npz"))
            adapters = Adapters.from_arrays(self.layout(factors.specialists), self.base.hparams, arrays)
        else:
            trainer = self.train(person, factors, ordinary)
            adapters = trainer.adapters
            if factors.closing:
                record["before"] = self.measure(trainer.model)
        if factors.closing:
            trainer = self.trainer(person, learning.with_zero(adapters, factors.k), self.schedule())
            self.mix(trainer, factors, ordinary)
            trainer.round_experts()
            if factors.fit:
                self.fit(trainer, ordinary)
            trainer.close(max(1, round(factors.closing * self.scale.closing)), factors.rows, factors.decay)
        return record | self.measure(trainer.model) | {"ordinary_rows": len(ordinary)}

    def train(self, person: str, factors: Zero, ordinary: Rows) -> Rehearsing:
        """A whole training: with the zero expert in every turn of the router, or still without."""
        layout = self.layout(factors.specialists)
        if not factors.closing:
            layout = replace(layout, zero_expert=True, experts_per_token=factors.k)
        trainer = self.trainer(person, Adapters.initial(layout, self.base.hparams, SEED), self.schedule())
        if not factors.closing:
            self.mix(trainer, factors, ordinary)
        if factors.experts:
            trainer.training = Mixed(trainer.training, ordinary, factors.experts)  # type: ignore[assignment]
            trainer.by_kl = factors.kl
        finish(trainer)
        return trainer

    def mix(self, trainer: Rehearsing, factors: Zero, ordinary: Rows) -> None:
        """Ordinary rows come among the router's."""
        trainer.router_rows = Mixed(trainer.validation.router_rows, ordinary, factors.share)  # type: ignore[assignment]
        trainer.by_kl = factors.kl
        assert trainer.router is not None
        if not factors.offset and trainer.router.of_offsets is not None:
            trainer.router.of_offsets = FixedOffset([trainer.router.offsets], trainer.schedule.router_offset_rate, 0.0)

    def fit(self, trainer: Rehearsing, ordinary: Rows) -> None:
        """The zero expert's routers by least squares."""
        tokens = trainer.schedule.batch * self.scale.context
        own, rows = trainer.validation.router_rows, trainer.schedule.batch
        fit_zero(trainer.adapters, own, ordinary, rows, lambda adapters: new_model(self.base, adapters, tokens))

    # Small steps --------------------------------------------------------------------------------------------------

    def of_small(self, trial: Trial) -> Record:
        """Validation losses by tokens learned: [of training, of the router, nats, seconds of training]."""
        person, factors = trial.person_and(Small)
        schedule = learning.small_step_schedule(factors, self.scale.tokens * factors.tokens // TOKENS, self.scale.context)
        layout = plan_experts(learning.model_of(factors), self.base.hparams)
        trainer = self.trainer(person, Adapters.initial(layout, self.base.hparams, SEED), schedule)
        if isinstance(trainer.experts, AdamW):
            trainer.experts.beta2 = factors.beta
        trainer.validation._batch = 32  # as many forward passes however few rows a step has
        if factors.router_rows:
            trainer.router_rows = Sized(trainer.router_rows, factors.router_rows)  # type: ignore[assignment]
        curve = finish(trainer, max(1, schedule.steps // self.scale.points))
        record = {"curve": curve, "steps": schedule.total_steps, "best": trainer.best_loss}
        return record | {"nats": {person: self.nats(trainer.model, self.rows(person, "test"), self.scale.measured)}}


def finish(trainer: Trainer, every: int = 0) -> list[list[float]]:
    """Trains to the end and takes the best state, as the product does; the validation loss every so many expert steps."""
    curve: list[list[float]] = []
    tokens = {"expert": 0, "router": 0}
    seconds, start = 0.0, time.monotonic()
    for event in trainer.run():
        tokens[event.phase] += event.tokens
        if every and event.phase == "expert" and event.expert_steps % every == 0:
            seconds += time.monotonic() - start
            curve.append([tokens["expert"], tokens["router"], trainer.validate(), round(seconds, 2)])
            start = time.monotonic()
    trainer.adapters.load_arrays(trainer.best)
    trainer.model.block_format = trainer.schedule.block_format
    return curve
