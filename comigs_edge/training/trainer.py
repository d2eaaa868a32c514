"""The bi-level loop (CoMiGS, arXiv:2409.13931, algorithm 1), for one device.

`router_period` expert steps on training text, then `router_steps` router steps on validation text, and so on. In each
phase the other group's `requires_grad` is off and its gradients are None, so nothing leaks between the levels (the
published code's optimisers share accumulated gradients). With `rates_by_weight` the router also says how fast each expert
learns: AdamW's steps have one size whatever the gradient's, so without that an expert that hardly counts learns as fast as the
others. Where the loop stands follows from two counters, so a training that was interrupted goes on bit for bit.

Shapes: E experts.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from comigs_edge.arrays import part
from comigs_edge.errors import ComigsError
from comigs_edge.nn.experts import is_router
from comigs_edge.nn.loss import next_token_loss
from comigs_edge.nn.model import Model, Watch
from comigs_edge.nn.routing_stats import MeanWeights
from comigs_edge.nn.tensors import tensor_to_numpy, to_device
from comigs_edge.training.activation_cache import Below
from comigs_edge.training.adamw import STATE, AdamW
from comigs_edge.training.batches import Batch, Rows
from comigs_edge.training.router_adamw import RouterAdamW
from comigs_edge.training.schedule import Schedule
from coordinator.protocol.wire import Arrays

OFFSETS = "router.offsets"  # name of their moments in a state


@dataclass(frozen=True)
class Event:
    """One step that was done; losses in nats a token."""

    phase: str  # expert or router
    expert_steps: int
    router_steps: int
    loss: float
    tokens: int  # that the step computed
    validation_loss: float | None  # where it was measured after this step
    is_best: bool


class Trainer:
    """Trains `model`'s adapters in place; `best` holds the arrays with the lowest validation loss so far.

    `below` has the outputs of the blocks without experts, for training and for validation rows; None: they are computed.
    The validation loss is that of the first `measured_rows` of the validation rows: at most half of them where the router
    learns from the others. `router_rows` are what it learns from in place of those.
    """

    def __init__(
        self, model: Model, training: Rows, validation: Rows, schedule: Schedule,
        below: tuple[Below, Below] | None = None, router_rows: Rows | None = None,
    ) -> None:  # fmt: skip
        if model.adapters is None:
            raise ValueError("a model without adapters cannot be trained")
        if below is not None and router_rows is not None:
            raise ValueError("the outputs of lower blocks are kept for training and validation rows only")
        self.model, self.adapters = model, model.adapters
        self.training, self.validation, self.schedule, self.below = training, validation, schedule, below
        self.expert_steps = self.router_steps = 0
        self.frozen: set[str] = set()  # names of expert tensors that are not trained now
        self.looks_late = model.base.device.type == "cuda"
        self._pending: Tensor | None = None  # the loss of the last step, on a GPU
        self.first_loss: float | None = None
        self.best_loss = math.inf
        self.best: Arrays = self.adapters.arrays()
        self.last_loss = math.nan
        # Mean weight of every expert in each block with experts, on the validation rows; None: no router or not known yet.
        self.scores: list[list[float]] | None = None
        decay, rate = schedule.weight_decay, schedule.expert_learning_rate
        self.experts = AdamW(self.adapters.group(router=False), rate, decay)
        routers = self.adapters.group(router=True)
        self.router = (
            RouterAdamW(routers, schedule.router_learning_rate, decay, schedule.router_offset_rate) if routers else None
        )
        # A loss on rows that the router has learned from would flatter every later state.
        learns_here = bool(routers) and router_rows is None and not schedule.jointly and len(validation) > 1
        self.measured_rows = min(schedule.validation_rows, len(validation) // 2 if learns_here else len(validation))
        if router_rows is None:
            router_rows = validation.after(self.measured_rows) if learns_here else validation
        self.router_rows = router_rows

    @property
    def is_done(self) -> bool:
        """Whether all steps have been done."""
        return self.expert_steps >= self.schedule.steps and not self._router_is_due

    @property
    def _router_is_due(self) -> bool:
        return self.router is not None and self.router_steps < self.schedule.router_due(self.expert_steps)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.schedule.total_steps if self.router is not None else self.schedule.steps

    def run(self, until: int | None = None, ends_before_router: bool = False) -> Iterator[Event]:
        """Does step after step; stop iterating to interrupt.

        `until` ends it before all is done: after so many expert steps and the router steps that belong to them, or with
        `ends_before_router` before those.
        """
        if self.first_loss is None:
            # What there is to be beaten: the base as it is, or the adapters as their file holds them.
            self.first_loss = self.best_loss = self.validate(as_stored=not self.adapters.is_initial)
        while not self.is_done and (
            until is None or self.expert_steps < until or (self._router_is_due and not ends_before_router)
        ):
            yield self.step()

    def step(self) -> Event:
        """The next step of the schedule, and the validation loss where a period ends."""
        self.model.block_format = self.schedule.fake_format(self.expert_steps)
        if self._router_is_due and self.router is not None:
            batch = self.router_rows.batch(self.router_steps, self.schedule.batch)
            with self._watched(self.router.inputs):
                loss = self._descend([self.router], batch, is_validation=True)
            self.router_steps += 1
            phase = "router"
        else:
            self.experts.learning_rate = self.schedule.learning_rate(self.expert_steps)
            self.experts.factors = self._factors()
            batch = self.training.batch(self.expert_steps, self.schedule.batch)
            joining = [self.router] if self.schedule.jointly and self.router is not None else []
            loss = self._descend([self.experts, *joining], batch, is_validation=False)
            self.expert_steps += 1
            phase = "expert"
        period_ends = self.expert_steps % self.schedule.router_period == 0 or self.expert_steps == self.schedule.steps
        validation = self.validate(notes_scores=True) if period_ends and not self._router_is_due else None
        is_best = validation is not None and validation < self.best_loss
        if validation is not None:
            self.last_loss = validation
        if is_best and validation is not None:
            self.best_loss, self.best = validation, self.adapters.arrays()
        return Event(phase, self.expert_steps, self.router_steps, loss, batch.tokens.numel(), validation, is_best)

    def _descend(self, learning: list[AdamW], batch: Batch, is_validation: bool) -> float:
        """One step of the groups that learn. A group that does not cannot change: it has no gradient at all."""
        self._open(learning)
        loss, balance = self._loss(batch, is_validation)
        total = loss if balance is None else loss + self.schedule.balance_weight * balance
        seen = self._look(loss.detach())
        torch.autograd.backward(total)
        for optimiser in learning:
            optimiser.step()
        return seen

    def _open(self, learning: list[AdamW]) -> None:
        """Before a step: tensors of these groups get gradients, and there are none from steps before."""
        for name, tensor in self.adapters.named.items():
            tensor.grad = None
            tensor.requires_grad_(self._optimiser(name) in learning and name not in self.frozen)

    def _look(self, loss: Tensor) -> float:
        """The loss, or that of the step before where looking at this one would make the processor wait for a GPU.

        Raises `ComigsError` if it is not finite. Nothing is saved before the last one was looked at.
        """
        if self.looks_late:
            loss, self._pending = self._pending if self._pending is not None else loss, loss
        if not math.isfinite(float(loss)):
            raise ComigsError(
                f"the loss became {float(loss)} at expert step {self.expert_steps}; what was saved is unharmed, "
                "lower expert_learning_rate in config.toml and run: comigs-edge train --fresh"
            )
        return float(loss)

    def _loss(self, batch: Batch, is_validation: bool) -> tuple[Tensor, Tensor | None]:
        layout, below, count = self.adapters.layout, self._below(batch, is_validation), batch.num_scored
        batch = batch.to(self.model.base.device)
        # With two experts for every token the balance loss is a constant: nothing to compute.
        balanced = layout.num_experts > 2 and self.schedule.balance_weight > 0
        out = self.model(batch.tokens, batch.documents, balanced, below)
        return next_token_loss(self.model.base, out.hidden, batch.targets, batch.scored) / count, out.balance

    def _below(self, batch: Batch, is_validation: bool) -> Tensor | None:
        return None if self.below is None else to_device(self.below[is_validation](batch), self.model.base.device)

    def validate(self, as_stored: bool = True, rows: int | None = None, notes_scores: bool = False) -> float:
        """Mean loss in nats a token of the measured rows, or the first `rows` of them, in the weights of the exported file.

        With `notes_scores` the router's weights there become `scores`.
        """
        num_rows = self.measured_rows if rows is None else min(rows, self.measured_rows)
        measured = self.validation.first(num_rows, self.schedule.batch)
        if not notes_scores:
            return self.mean_loss(measured, as_stored)
        weights = MeanWeights()
        with self._watched(weights):
            loss = self.mean_loss(measured, as_stored)
        self.scores = weights.by_block()
        return loss

    def mean_loss(self, validation: list[Batch], as_stored: bool = True) -> float:
        """Mean loss in nats a token of these batches of validation rows; `as_stored`: in the weights of the exported file."""
        total, count = 0.0, 0
        self.model.block_format = self.schedule.block_format if as_stored else None
        with torch.no_grad():
            for batch in validation:
                below, batch = self._below(batch, is_validation=True), batch.to(self.model.base.device)
                hidden = self.model(batch.tokens, batch.documents, below=below).hidden
                total += float(next_token_loss(self.model.base, hidden, batch.targets, batch.scored))
                count += batch.num_scored
        return total / count

    @contextlib.contextmanager
    def _watched(self, watch: Watch | None) -> Iterator[None]:
        self.model.watch = watch
        try:
            yield
        finally:
            self.model.watch = None

    def _factors(self) -> dict[Tensor, float]:
        """Factor on the learning rate of every expert's tensors: E times its mean weight in that block."""
        if not self.schedule.rates_by_weight or self.scores is None:
            return {}
        factors: dict[Tensor, float] = {}
        for block, scores in enumerate(self.scores, self.adapters.first_block):
            for tensors, score in zip(self.adapters.by_expert(block), scores, strict=True):
                factors |= dict.fromkeys(tensors, len(scores) * score)
        return factors

    # State --------------------------------------------------------------------------------------------------------

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Everything that the rest of the training depends on; the arrays are views, valid until the next step."""
        if self._pending is not None:
            self._look(self._pending)
        arrays: Arrays = {f"current.{name}": tensor_to_numpy(tensor) for name, tensor in self.adapters.named.items()}
        arrays |= {f"best.{name}": array for name, array in self.best.items()}
        for name, tensor in self.adapters.named.items():
            for key, value in self._moments(name, tensor).items():
                arrays[f"{key}.{name}"] = tensor_to_numpy(value)
        if self.router is not None:
            arrays |= {f"{key}.{OFFSETS}": tensor_to_numpy(value) for key, value in self.router.offset_state.items()}
        progress = {
            "expert_steps": self.expert_steps, "router_steps": self.router_steps, "first_loss": self.first_loss,
            "best_loss": self.best_loss, "schedule": asdict(self.schedule), "layout": asdict(self.adapters.layout),
            "last_loss": self.last_loss, "scores": self.scores,
        }  # fmt: skip
        return arrays, progress

    def restore(self, arrays: Arrays, progress: dict[str, Any]) -> None:
        """The reverse of `state`; the schedule and the layout must be those of the state."""
        self.adapters.load_arrays(part(arrays, "current."))
        self.best = part(arrays, "best.")
        for name, tensor in self.adapters.named.items():
            if f"exp_avg.{name}" in arrays:
                self._optimiser(name).state[tensor] = _moments(arrays, name, tensor.device)
        if self.router is not None and f"exp_avg.{OFFSETS}" in arrays:
            self.router.offset_state = _moments(arrays, OFFSETS, self.router.offsets.device)
        self.expert_steps, self.router_steps = progress["expert_steps"], progress["router_steps"]
        self.first_loss, self.best_loss = progress["first_loss"], progress["best_loss"]
        self.last_loss, self.scores = progress["last_loss"], progress.get("scores")

    def _moments(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self._optimiser(name).state.get(tensor, {})
        return dict(state)

    def _optimiser(self, name: str) -> AdamW:
        if is_router(name):
            assert self.router is not None
            return self.router
        return self.experts


def _moments(arrays: Arrays, name: str, device: torch.device) -> dict[str, Tensor]:
    """What an optimiser's next step of one tensor depends on."""
    return {key: torch.from_numpy(arrays[f"{key}.{name}"].copy()).to(device) for key in STATE}
