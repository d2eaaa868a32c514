"""What the devices of one run have in common: schedule and experts, the recipe's or, for `comigs-edge`, the product's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from comigs_edge.base.hparams import HParams
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import BaseConfig, Config, ModelConfig, TrainConfig
from comigs_edge.nn.experts import FORMS, ExpertsConfig, default_form
from comigs_edge.planning.plan import plan_experts
from comigs_edge.simulate.methods.method import Method
from comigs_edge.simulate.recipe import Recipe, Size
from comigs_edge.training.schedule import Schedule, make_schedule

PAPERS_RATE = 2e-3  # of the experts; the final rate is a tenth of it


@dataclass(frozen=True, kw_only=True)
class InStages(Schedule):
    """The experts' rate begins anew at expert step `restart`; 0: it does not."""

    restart: int = 0

    def learning_rate(self, step: int) -> float:
        """Of the experts at this step, on the course of its stage."""
        if not self.restart:
            return super().learning_rate(step)
        begin, end = (0, self.restart) if step < self.restart else (self.restart, self.steps)
        return replace(self, steps=end - begin, restart=0).learning_rate(step - begin)


@dataclass(frozen=True)
class Plan:
    """One method with one seed."""

    recipe: Recipe
    size: Size
    method: Method
    seed: int
    leaky: bool = False
    scores_before: bool = False  # also the models that the last exchange finds, as the paper does
    scores_last: bool = True  # also the state that the last round leaves, where validation text chooses another
    zero_expert: bool | None = None  # whether the product's trainings end with one; None: as a new home's

    @property
    def rounds_alone(self) -> int:
        """Those of a first stage without an exchange but at its end."""
        return self.method.first_exchange(self.size.rounds) if self.method.first_exchange else 0

    def schedule(self, hparams: HParams, devices: int) -> Schedule:
        """How a device trains; the one device of pooled text has as many batches a step as there are devices."""
        training, size = self.recipe.training, self.size
        steps = size.rounds * size.local_steps
        if self.method.is_product:
            return make_schedule(self.settings(hparams), size.batch, steps)
        rate = PAPERS_RATE if training.expert_learning_rate is None else training.expert_learning_rate
        return InStages(
            restart=self.rounds_alone * size.local_steps,
            steps=steps,
            batch=size.batch * (devices if self.method.text == "pooled" else 1),
            optimiser=FORMS[self.recipe.experts.form or "lora"].optimiser,
            expert_learning_rate=rate,
            final_learning_rate=rate / 10 if training.final_learning_rate is None else training.final_learning_rate,
            router_learning_rate=training.router_learning_rate,
            warmup_steps=training.warmup_steps,
            router_period=size.router_period,
            router_steps=0 if self.method.router == "even" else size.router_steps,
            balance_weight=training.balance_weight,
            weight_decay=training.weight_decay,
            validation_rows=size.validation_rows,
            jointly=self.method.router == "jointly",
        )

    def layout(self, hparams: HParams, specialists: int) -> ExpertsConfig:
        """The experts of a device that could carry `specialists` specialists."""
        if self.method.is_product:
            return plan_experts(self.settings(hparams, specialists).model, hparams)
        experts = self.recipe.experts
        form = experts.form or "lora"
        low_rank = FORMS[form].is_low_rank
        if self.method.lora_only and not low_rank:
            raise ComigsError(f'{self.method.name} is about low-rank updates; use form = "lora" in [experts]')
        width = 0 if low_rank else experts.width
        plain = ExpertsConfig(1, experts.rank, experts.alpha, 2, experts.attention, form, width, experts.blocks)
        return self.method.layout(plain, specialists)

    def record(self, hparams: HParams) -> dict[str, Any]:
        """What a record keeps of it, for a device with one specialist."""
        return {
            "schedule": asdict(self.schedule(hparams, 1)), "experts": asdict(self.layout(hparams, 1)),
            "zero_expert": self.method.is_product and self.settings(hparams).has_zero_expert,
            "rounds": self.size.rounds, "local_steps": self.size.local_steps, "context": self.size.context,
            "exchange": asdict(self.recipe.exchange), "texts": self.method.text, "exchanges_first": self.method.exchanges_first,
        }  # fmt: skip

    def settings(self, hparams: HParams, specialists: int = 1) -> Config:
        """A new home's settings on this base, with what the recipe says of the experts."""
        experts, training = self.recipe.experts, self.recipe.training
        model = ModelConfig(
            specialists=specialists, expert_form=experts.form or default_form(hparams.architecture), rank=experts.rank,
            expert_width=experts.width, alpha=experts.alpha, attention=experts.attention, blocks=experts.blocks,
            zero_expert=self.zero_expert,
        )  # fmt: skip
        rates = TrainConfig(expert_learning_rate=training.expert_learning_rate, final_learning_rate=training.final_learning_rate)
        return Config(base=BaseConfig("", "", 0), model=model, train=rates)
