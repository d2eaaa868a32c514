"""How the trials learn: the product's trainer with ordinary rows among the router's (and the experts'), by loss or by KL."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.trials.catalogue import Small
from comigs_edge.home.config import BaseConfig, Config, ModelConfig
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import is_router
from comigs_edge.nn.loss import next_token_loss
from comigs_edge.nn.model import Model
from comigs_edge.training.adamw import AdamW
from comigs_edge.training.batches import Batch, Rows
from comigs_edge.training.schedule import Schedule, make_schedule
from comigs_edge.training.trainer import Trainer
from quantize.fake import fake_quantize

SEED = 42


def settings(specialists: int = 1) -> Config:
    """The product's defaults, as `comigs-edge init` writes them for a small base."""
    return Config(base=BaseConfig("", "", 0), model=ModelConfig(specialists=specialists, expert_form="parallel"))


@dataclass(frozen=True)
class MixedBatch(Batch):
    """The last `ordinary` rows are ordinary text."""

    ordinary: int = 0


class Mixed:
    """Batches of `rows` in which a share of the rows is ordinary text; stands in for `Rows` in a trainer."""

    def __init__(self, rows: Rows, ordinary: Rows, share: float) -> None:
        self.rows, self.ordinary, self.share = rows, ordinary, share

    def batch(self, number: int, size: int) -> MixedBatch:
        """The batch with this number."""
        count = round(size * self.share)
        one, other = self.rows.batch(number, size - count), self.ordinary.batch(number, count)
        parts = {
            name: torch.cat((getattr(one, name), getattr(other, name))) for name in ("tokens", "documents", "targets", "scored")
        }
        return MixedBatch(**parts, places=one.places + other.places, ordinary=count)


class Sized:
    """The same rows, always so many in a batch."""

    def __init__(self, rows: Rows, size: int) -> None:
        self.rows, self.size = rows, size

    def batch(self, number: int, size: int) -> Batch:
        """The batch with this number."""
        return self.rows.batch(number, self.size)


class Rehearsing(Trainer):
    """Also takes mixed batches; with `by_kl` ordinary rows count by the KL divergence of the model from the base."""

    by_kl = False

    @torch.no_grad()
    def round_experts(self) -> None:
        """Makes the experts those of the exported file once and for all: they do not change any more, and steps are faster."""
        if self.schedule.block_format is not None:
            scale = self.adapters.layout.expert_scale  # a power of two
            for name, tensor in self.adapters.named.items():
                if not is_router(name):
                    factor = scale if ".ffn_down." in name else 1.0
                    tensor.copy_(fake_quantize(tensor * factor, self.schedule.block_format) / factor)
        self.model.block_format = None

    def close(self, steps: int, rows: int = 0, decay: bool = False) -> None:
        """A closing phase: router steps alone; the rates may `decay` in a line to a tenth."""
        router = self.router
        assert router is not None
        optimisers = [router, *([router.of_offsets] if router.of_offsets else [])]
        first = [each.learning_rate for each in optimisers]
        for step in range(steps):
            share = 1 - 0.9 * step / max(1, steps - 1) if decay else 1.0
            for optimiser, rate in zip(optimisers, first, strict=True):
                optimiser.learning_rate = share * rate
            self._router_step(router, self.router_rows.batch(self.router_steps, rows or self.schedule.batch))

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        count = batch.ordinary if isinstance(batch, MixedBatch) else 0
        if not (self.by_kl and count):
            return super()._loss(batch)
        base, moved, own = self.model.base, batch.to(self.model.base.device), batch.scored.clone()
        own.view(len(batch.tokens), -1)[-count:] = False
        with torch.no_grad():  # before the model's own pass, whose buffers it uses
            expected = Model(base, None)(moved.tokens[-count:], batch.documents[-count:]).hidden
        hidden = self.model(moved.tokens, batch.documents).hidden
        loss = next_token_loss(base, hidden, moved.targets, own)
        scored = batch.scored[-len(expected) :].to(base.device)
        loss = loss + divergence(self.model, expected[scored], hidden[-len(expected) :][scored]).sum()
        return loss / batch.num_scored, None


def divergence(model: Model, expected: Tensor, hidden: Tensor) -> Tensor:  # (N, D), (N, D) -> (N,)
    """KL divergence in nats of what follows `hidden` from what follows `expected`, which is the base's."""
    with torch.no_grad():
        theirs = model.logits(expected).log_softmax(-1)
    return F.kl_div(model.logits(hidden).log_softmax(-1), theirs, log_target=True, reduction="none").sum(-1)


def with_zero(adapters: Adapters, k: int) -> Adapters:
    """The same experts and router, and a zero expert; k experts a token."""
    layout = replace(adapters.layout, zero_expert=True, experts_per_token=k)
    arrays, trained = Adapters.initial(layout, adapters.hparams, SEED).arrays(), adapters.arrays()
    for name, array in trained.items():
        if is_router(name):
            arrays[name][: len(array)] = array
        else:
            arrays[name] = array
    return Adapters.from_arrays(layout, adapters.hparams, arrays)


class FixedOffset(AdamW):
    """Of a router's offsets: that of the last expert does not learn."""

    def step(self) -> None:
        """One step."""
        gradient = self.tensors[0].grad
        if gradient is not None:
            gradient[-1] = 0
        super().step()


class WarmStableDecay(Schedule):
    """Warm-up over 5 % of the steps, then the first rate, over the last fifth in a line to the final one."""

    def learning_rate(self, step: int) -> float:
        """Of the experts at this step."""
        warm, decay = max(1, self.steps // 20), max(1, self.steps // 5)
        span = self.expert_learning_rate - self.final_learning_rate
        fallen = max(0.0, (step - (self.steps - decay)) / decay)
        return min(1.0, (step + 1) / warm) * self.expert_learning_rate - fallen * span


def model_of(factors: Small) -> ModelConfig:
    """A generalist and a specialist."""
    return ModelConfig(specialists=1, expert_form=factors.form, expert_width=factors.width)


def small_step_schedule(factors: Small, tokens: int, context: int) -> Schedule:
    """The product's with these factors, for `tokens` of training text in rows of `context`."""
    product, rate = replace(settings(), model=model_of(factors)), factors.rate
    plain = make_schedule(product, factors.rows, max(1, tokens // (factors.rows * context)))
    changed = replace(
        plain, expert_learning_rate=plain.expert_learning_rate * rate, final_learning_rate=plain.final_learning_rate * rate,
        router_period=factors.period, router_steps=factors.router, optimiser=factors.optimiser,
    )  # fmt: skip
    return WarmStableDecay(**asdict(changed)) if factors.stable else changed
