"""The schedule of a training: steps, learning rates, the router's turns, fake quantisation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from comigs_edge.home.config import Config

CLOSING_SHARE = 0.6  # of the expert steps: 60 behind 100 were measured


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How to train; learning rates per step, periods in steps."""

    steps: int
    batch: int
    expert_learning_rate: float
    final_learning_rate: float
    router_learning_rate: float
    warmup_steps: int
    router_period: int
    router_steps: int
    balance_weight: float
    weight_decay: float
    validation_rows: int  # that the validation loss is measured on, at most
    block_format: str | None = None  # fake quantisation in this format ...
    quantise_start: float = 1.0  # ... after this share of the steps
    rates_by_weight: bool = False  # an expert learns in proportion to its mean weight on the validation rows
    router_offset_rate: float = 0.0  # learning rate of the per-expert logit offsets; 0 turns them off
    jointly: bool = False  # router and experts learn in the same steps, from training text; no router steps
    closing_steps: int = 0  # at most, of the router alone with a zero expert, behind all others

    @property
    def closing(self) -> int:
        """Steps of the closing phase; fewer behind a short training, which has also moved less away from the base."""
        return min(self.closing_steps, math.ceil(CLOSING_SHARE * self.steps))

    def facts(self) -> dict[str, object]:
        """What a checkpoint keeps; earlier versions, which know no closing phase, resume a training without one."""
        return {name: value for name, value in asdict(self).items() if name != "closing_steps" or value}

    def fake_format(self, step: int) -> str | None:
        """The block format that this expert step computes in; None for the weights as they are."""
        return self.block_format if step >= self.quantise_start * self.steps else None

    def learning_rate(self, step: int) -> float:
        """Of the experts at this step: linear warm-up, then a cosine from the first to the final rate."""
        if step < self.warmup_steps:
            return self.expert_learning_rate * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        span = self.expert_learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * (1 + math.cos(math.pi * share)) / 2

    def router_due(self, expert_steps: int) -> int:
        """Router steps that belong before the next expert step; the last period may be a short one."""
        if self.jointly:
            return 0
        periods, rest = divmod(expert_steps, self.router_period)
        return (periods + (1 if rest and expert_steps == self.steps else 0)) * self.router_steps

    @property
    def total_steps(self) -> int:
        """Expert and router steps of the whole training."""
        return self.steps + self.router_due(self.steps)


def make_schedule(settings: Config, batch: int, steps: int | None) -> Schedule:
    """The schedule that the settings ask for, with `batch` rows a step; `steps` replaces theirs."""
    train, storage, rates = settings.train, settings.storage(), settings.learning_rates()
    return Schedule(
        steps=steps or train.steps, batch=batch,
        expert_learning_rate=rates[0], final_learning_rate=rates[1],
        router_learning_rate=train.router_learning_rate, warmup_steps=train.warmup_steps,
        router_period=train.router_period, router_steps=train.router_steps, balance_weight=train.balance_weight,
        weight_decay=train.weight_decay, validation_rows=train.validation_rows,
        rates_by_weight=train.rates_by_weight, router_offset_rate=train.router_offset_rate,
        block_format=storage.fake_format, quantise_start=storage.start,
        closing_steps=train.closing_steps if settings.has_zero_expert else 0,
    )  # fmt: skip
