"""The schedule of a training: steps, learning rates, the router's turns, fake quantisation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace

from comigs_edge.home.config import Config, Course
from comigs_edge.nn.experts import FORMS
from comigs_edge.nn.form import OptimiserName

CLOSING_SHARE = 0.1  # of the expert steps
CLOSING_ROWS = 8  # that the steps of a closing phase are counted in; of smaller batches it has more
FIT_ROWS = 32  # of either text, by which a closing phase puts the routers where they begin
FEWEST = 10  # steps, however little text there is; also of a closing phase, unless the experts do fewer
EXPERTS_PER_CLOSING = 3  # expert steps for each of a closing phase, at least, where small batches give it more than `FEWEST`
RATE_STEPS = 50  # that the default rate was measured with
FURTHER_RATE = 0.3  # of the experts' first rate in a new training, for one that goes on
ON_THE_WAY = (0.5, 0.25)  # shares of the way to its end, at which a training that goes on is measured too (`line.py`)
DECAY_SHARE = 0.2  # of the steps before it, that a constant rate takes to fall

# What the first versions did not know.
_LATER = ("closing_steps", "closing_rows", "schedule", "patience", "decay_from", "optimiser", "rate_steps", "rate_factor")


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
    closing_steps: int = 0  # at most, of the router alone with a zero expert, behind all others ...
    closing_rows: int = 0  # ... of so many rows: of smaller batches more steps; 0: of whatever a batch has
    schedule: Course = "cosine"  # of the experts' rate; wsd: constant, and at the end down in a line
    patience: int = 0  # periods without a better validation loss after which the end is decided; 0: never
    decay_from: int | None = None  # the step at which a constant rate begins to fall, where patience has decided it
    optimiser: OptimiserName = "adamw"  # of the experts
    rate_steps: float = 0  # the experts' rate is for so many steps: longer trainings learn more slowly; 0: it is for any number
    rate_factor: float = 1.0  # on the experts' rate: a training that goes on from a finished one learns more slowly

    @property
    def goes_on(self) -> bool:
        """Whether a finished training is taken up again."""
        return self.rate_factor < 1

    @property
    def closing(self) -> int:
        """Steps of the closing phase; fewer behind a short training, which has also moved less away from the base."""
        rows = max(self.batch, self.closing_rows)
        few, most = (math.ceil(steps * rows / self.batch) for steps in (FEWEST, self.closing_steps))
        usual = math.ceil(CLOSING_SHARE * self.steps)
        if self.goes_on:  # however short it is, what it goes on from is far from the base
            return min(most, max(few, usual))
        fewest = max(FEWEST, min(few, self.steps // EXPERTS_PER_CLOSING))
        return min(most, self.steps, max(fewest, usual))

    def slow(self) -> Schedule:
        """That of a training that goes on from a finished one."""
        return replace(self, rate_factor=FURTHER_RATE)

    def facts(self) -> dict[str, object]:
        """What a checkpoint keeps; earlier versions, which know less, resume a training that does without it."""
        defaults = {field.name: field.default for field in fields(self) if field.name in _LATER}
        return {name: value for name, value in asdict(self).items() if name not in defaults or value != defaults[name]}

    def ended(self, step: int) -> Schedule:
        """The same with its end decided after this expert step, once.

        It comes when a constant rate has fallen, or behind the share of steps that compute in the file's weights, or at once.
        """
        if self.decay_from is not None or (self.schedule == "wsd" and step >= self._falls_from):
            return self
        if self.schedule == "wsd":
            steps = min(self.steps, step + math.ceil(DECAY_SHARE * step))
            # So the rate stays what it was.
            rate_steps = self.rate_steps * steps / self.steps if self.rate_steps < self.steps else self.rate_steps
            return replace(self, steps=steps, decay_from=step, rate_steps=rate_steps)
        if self.block_format is not None and step < self.quantise_start * self.steps:
            return replace(self, steps=min(self.steps, math.floor(step / self.quantise_start)), decay_from=step)
        return replace(self, steps=step)

    def keep_course(self, asked: Schedule, is_closing: bool) -> Schedule:
        """What is asked for, on the course of this one, which a training keeps to its end, a closing phase that began too."""
        names = [name for name in _LATER if name != "closing_steps" or is_closing]
        return replace(asked, **{name: getattr(self, name) for name in names})

    @property
    def _falls_from(self) -> int:
        return math.ceil(self.steps / (1 + DECAY_SHARE)) if self.decay_from is None else self.decay_from

    def fake_format(self, step: int) -> str | None:
        """The block format that this expert step computes in; None for the weights as they are."""
        return self.block_format if step >= self.quantise_start * self.steps else None

    def learning_rate(self, step: int) -> float:
        """Of the experts at this step: linear warm-up, then on its course from the first to the final rate."""
        share = rate_share(self.rate_steps, self.steps)
        first = share * self.rate_factor * self.expert_learning_rate
        if step < self.warmup_steps:
            return first * (step + 1) / self.warmup_steps
        final = min(first, share * self.final_learning_rate)
        if self.schedule == "wsd":
            left = (self.steps - step) / max(1, self.steps - self._falls_from)
            return final + (first - final) * min(1.0, left)
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return final + (first - final) * (1 + math.cos(math.pi * done)) / 2

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


def rate_share(rate_steps: float, steps: int) -> float:
    """What part of a rate that is for `rate_steps` steps (0: for any number) a training of so many steps learns at."""
    return min(1.0, math.sqrt(rate_steps / steps)) if rate_steps else 1.0


def make_schedule(settings: Config, batch: int, steps: int | None, rows: int | None = None) -> Schedule:
    """The schedule that the settings ask for, with `batch` rows a step.

    Those who name `steps` get that many. Otherwise the settings' are the most, after the first few `rows` of text are read no
    more often than they say, and patience may end it.
    """
    train, storage, rates = settings.train, settings.storage(), settings.learning_rates()
    enough = train.steps
    if rows is not None:
        enough = max(FEWEST, math.ceil(train.passes * rows / batch))
    optimiser = train.optimiser or FORMS[settings.model.expert_form].optimiser
    return Schedule(
        steps=min(train.steps, enough) if steps is None else steps, batch=batch,
        schedule=train.schedule, patience=train.patience if steps is None else 0,
        optimiser=optimiser, rate_steps=RATE_STEPS if optimiser == "muon" and train.expert_learning_rate is None else 0,
        expert_learning_rate=rates[0], final_learning_rate=rates[1],
        router_learning_rate=train.router_learning_rate, warmup_steps=train.warmup_steps,
        router_period=train.router_period, router_steps=train.router_steps, balance_weight=train.balance_weight,
        weight_decay=train.weight_decay, validation_rows=train.validation_rows,
        rates_by_weight=train.rates_by_weight, router_offset_rate=train.router_offset_rate,
        block_format=storage.fake_format, quantise_start=storage.start,
        closing_steps=train.closing_steps if settings.has_zero_expert else 0,
        # Where it changes nothing an earlier version can go on.
        closing_rows=CLOSING_ROWS if settings.has_zero_expert and batch < CLOSING_ROWS else 0,
    )  # fmt: skip
