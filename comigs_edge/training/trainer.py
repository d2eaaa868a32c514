"""The bi-level loop (CoMiGS, arXiv:2409.13931, algorithm 1), for one device.

`router_period` expert steps on training text, then `router_steps` router steps on validation text, and so on. In each
phase the other group's `requires_grad` is off and its gradients are None, so nothing leaks between the levels (the
published code's optimisers share accumulated gradients). With `rates_by_weight` the router's weights also set how fast each
expert learns: the size of AdamW's steps does not depend on the gradient's, so without that an expert that hardly counts learns
as fast as the others. Two counters say where the loop stands, so an interrupted training continues bit for bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import Tensor

from comigs_edge.arrays import select
from comigs_edge.errors import ComigsError
from comigs_edge.nn.experts import is_router
from comigs_edge.nn.model import Model, Watch
from comigs_edge.nn.routing_stats import MeanWeights
from comigs_edge.nn.tensors import tensor_to_numpy
from comigs_edge.training.activation_cache import ActivationCache
from comigs_edge.training.adamw import AdamW
from comigs_edge.training.anew import measure_anew
from comigs_edge.training.batches import Batch, Rows
from comigs_edge.training.captured import Captured, CudaGraphs
from comigs_edge.training.checkpoint import Progress
from comigs_edge.training.curves import KEY, Curves
from comigs_edge.training.event import Event, Phase
from comigs_edge.training.line import find_share, part_of_way
from comigs_edge.training.muon import Muon
from comigs_edge.training.optimiser import Optimiser
from comigs_edge.training.rates_by_weight import rate_factors
from comigs_edge.training.router_adamw import RouterAdamW
from comigs_edge.training.schedule import Schedule
from comigs_edge.training.validation import Validation, batch_loss, with_below
from coordinator.protocol.wire import Arrays

OFFSETS = "router.offsets"  # name of their moments in a state
OPTIMISERS: dict[str, type[Optimiser]] = {"adamw": AdamW, "muon": Muon}


class Trainer:
    """Trains `model`'s adapters in place; `best` holds the arrays with the lowest validation loss so far.

    `caches` have the activations of the blocks without experts, for training and for validation rows; without them the model
    computes those. `router_rows` are what the router learns from, in place of validation rows.
    """

    def __init__(
        self, model: Model, training: Rows, validation: Rows, schedule: Schedule,
        caches: tuple[ActivationCache, ActivationCache] | None = None, router_rows: Rows | None = None,
    ) -> None:  # fmt: skip
        if model.adapters is None:
            raise ValueError("a model without adapters cannot be trained")
        if caches is not None and router_rows is not None:
            raise ValueError("activations are cached for training and validation rows only")
        self.model, self.adapters = model, model.adapters
        self.training, self.schedule, self.caches = training, schedule, caches
        self.expert_steps = self.router_steps = 0
        self.frozen: set[str] = set()  # names of expert tensors that are not trained now
        self.captured = Captured(model, CudaGraphs()) if model.captures else None
        self.defers_loss = model.base.device.type == "cuda"
        self._pending: Tensor | None = None  # the loss of the last step, on a GPU
        self.first_loss: float | None = None
        self.best_loss, self.last_loss = math.inf, math.nan
        self.best: Arrays = self.adapters.arrays()
        self.curves = Curves()
        self.stale_periods = 0  # since the last best state
        self.looks_back = True  # at states on the way, where a training that goes on ends
        self.way: float | None = None  # the share of it that is kept, once it was looked at
        self.start: Arrays | None = None  # what is to be beaten, where that is not the state in which `run` begins
        # Mean weight of every expert in each block with experts, on the validation rows; None: no router or not known yet.
        self.scores: list[list[float]] | None = None
        decay, rate = schedule.weight_decay, schedule.expert_learning_rate
        self.experts: Optimiser = OPTIMISERS[schedule.optimiser](self.adapters.group(router=False), rate, decay)
        routers = self.adapters.group(router=True)
        self.router = RouterAdamW(routers, schedule.router_learning_rate, decay, schedule.router_offset_rate) if routers else None
        # Every tensor that learns, with its optimiser.
        self._learners: dict[str, tuple[Optimiser, Tensor]] = {
            name: (self.router if self.router is not None and is_router(name) else self.experts, tensor)
            for name, tensor in self.adapters.named.items()
        }
        if self.router is not None and self.router.of_offsets is not None:
            self._learners[OFFSETS] = self.router.of_offsets, self.router.offsets
        learns = (bool(routers) or schedule.closing > 0) and router_rows is None and not schedule.jointly
        self.validation = Validation(model, validation, schedule, None if caches is None else caches[1], learns)
        self.router_rows = self.validation.router_rows if router_rows is None else router_rows

    @property
    def is_done(self) -> bool:
        """Whether all steps have been done, and the way was looked at if that is due."""
        return self._is_trained and not self._way_is_due

    @property
    def is_better(self) -> bool:
        """Whether it has found something better than its start, by validation loss."""
        return self.first_loss is not None and self.best_loss < self.first_loss

    @property
    def _is_trained(self) -> bool:
        return self.expert_steps >= self.schedule.steps and not self._router_is_due

    @property
    def _way_is_due(self) -> bool:
        return self.looks_back and self.schedule.goes_on and self.expert_steps > 0 and self.way is None

    @property
    def _router_is_due(self) -> bool:
        return self.router is not None and self.router_steps < self.schedule.router_due(self.expert_steps)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.schedule.total_steps if self.router is not None else self.schedule.steps

    def run(self, until: int | None = None, ends_before_router: bool = False) -> Iterator[Event]:
        """Does step after step; stop iterating to interrupt.

        `until` ends it early: after that number of expert steps and the router steps that belong to them, or with
        `ends_before_router` before those.
        """
        if self.first_loss is None:
            if self.start is None:
                self.first_loss = self.best_loss = self.measure_start()
            else:
                measure_anew(self, self.start)
            self.curves.add_validation(self.expert_steps, self.best_loss)
        while not self._is_trained and (
            until is None or self.expert_steps < until or (self._router_is_due and not ends_before_router)
        ):
            yield self.step()
        if self._is_trained and self._way_is_due:  # time has ended it behind a validation, or where no period ends
            loss = self.validate(record_scores=True)
            yield self._event("expert", loss, 0, *self._judge(loss))

    def step(self) -> Event:
        """The next step of the schedule, and the validation loss where a period ends."""
        self.model.block_format = self.schedule.fake_format(self.expert_steps)
        phase: Phase
        if self._router_is_due and self.router is not None:
            phase, batch = "router", self.router_rows.batch(self.router_steps, self.schedule.batch)
            loss = self._router_step(self.router, batch)
        else:
            phase, batch = "expert", self.training.batch(self.expert_steps, self.schedule.batch)
            loss = self._expert_step(batch)
        validation, is_best = None, False
        period_ends = self.expert_steps % self.schedule.router_period == 0 or self.expert_steps == self.schedule.steps
        if period_ends and not self._router_is_due:
            validation, is_best = self._judge(self.validate(record_scores=True))
        return self._event(phase, loss, batch.tokens.numel(), validation, is_best)

    def _event(self, phase: Phase, loss: float, tokens: int, validation: float | None, is_best: bool) -> Event:
        return Event(
            phase=phase, expert_steps=self.expert_steps, router_steps=self.router_steps, loss=loss, tokens=tokens,
            validation_loss=validation, is_best=is_best, problem=None if self.captured is None else self.captured.take_problem(),
        )  # fmt: skip

    def _judge(self, loss: float) -> tuple[float, bool]:
        """The validation loss of what a period ends with, and whether it is the best so far; `loss` is that of this state.

        Where a training that goes on ends, it is the best of this state and of those on the way to it from the best before.
        """
        self.last_loss, share = loss, 1.0
        self.stale_periods = 0 if loss < self.best_loss else self.stale_periods + 1
        if 0 < self.schedule.patience <= self.stale_periods:
            self.schedule = self.schedule.ended(self.expert_steps)
        if self._is_trained and self._way_is_due:
            share, loss = find_share(self.adapters, self.best, loss, self.validate)
            self.way = share if loss < self.best_loss else 1.0
        self.curves.add_validation(self.expert_steps, loss)
        if is_best := loss < self.best_loss:
            self.best_loss, self.best = loss, part_of_way(self.best, self.adapters.arrays(), share)
        return loss, is_best

    def _expert_step(self, batch: Batch) -> float:
        self.experts.learning_rate = self.schedule.learning_rate(self.expert_steps)
        self.experts.factors = rate_factors(self.adapters, self.scores if self.schedule.rates_by_weight else None)
        joining: list[Optimiser] = [self.router] if self.schedule.jointly and self.router is not None else []
        loss = self._optimise([self.experts, *joining], with_below(batch, self.caches and self.caches[0]))
        self.expert_steps, self.way = self.expert_steps + 1, None
        self.curves.add_training(self.expert_steps, loss)
        return loss

    def _router_step(self, router: RouterAdamW, batch: Batch) -> float:
        with self._watch(router.inputs):
            loss = self._optimise([router], with_below(batch, self.validation.cache))
        self.router_steps += 1
        return loss

    def _optimise(self, learning: list[Optimiser], batch: Batch) -> float:
        """One step of the optimisers in `learning`; the other's tensors cannot change: they have no gradient at all."""
        self._enable_gradients(learning)
        loss = self._backward(batch) if self.captured is None else self.captured(batch, self._backward)
        value = self._read_loss(loss)
        for optimiser in learning:
            optimiser.step()
        return value

    def _backward(self, batch: Batch) -> Tensor:
        """Forward and backward pass; nothing in it is a number of Python's that differs from step to step."""
        loss, balance = self._loss(batch)
        total = loss if balance is None else loss + self.schedule.balance_weight * balance
        torch.autograd.backward(total)
        return loss.detach()

    def _enable_gradients(self, learning: list[Optimiser]) -> None:
        """Clears all gradients; only tensors of these optimisers get new ones."""
        for name, tensor in self.adapters.named.items():
            tensor.grad = None
            tensor.requires_grad_(self._learners[name][0] in learning and name not in self.frozen)

    def _read_loss(self, loss: Tensor) -> float:
        """The loss of this step; on a GPU that of the previous step, so that the CPU does not wait.

        Raises `ComigsError` if it is not finite. Nothing is saved before the last one was read.
        """
        if self.defers_loss:
            loss, self._pending = self._pending if self._pending is not None else loss, loss
        if not math.isfinite(float(loss)):
            raise ComigsError(
                f"the loss became {float(loss)} at expert step {self.expert_steps}; what was saved is unharmed, "
                "lower expert_learning_rate in config.toml and run: comigs-edge train --fresh"
            )
        return float(loss)

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Mean loss in nats a token, and the balance loss if it counts."""
        # With two experts for every token the balance loss is a constant: nothing to compute.
        balanced = self.adapters.layout.num_experts > 2 and self.schedule.balance_weight > 0
        loss, balance = batch_loss(self.model, batch, balanced)
        return loss / batch.divisor, balance

    # Validation ---------------------------------------------------------------------------------------------------

    def measure_start(self) -> float:
        """The validation loss of what a training begins with: of the base as it is, of adapters as their file holds them."""
        return self.validate(as_stored=not self.adapters.is_initial)

    def validate(self, as_stored: bool = True, rows: int | None = None, record_scores: bool = False) -> float:
        """Mean loss in nats a token of the measured rows, or of the first `rows` of them.

        `as_stored`: in the weights of the exported file. With `record_scores` the router's mean weights there become `scores`.
        """
        weights = MeanWeights()
        with self._watch(weights if record_scores else None):
            loss = self.validation.measure(as_stored, rows)
        if record_scores:
            self.scores = weights.by_block()
        return loss

    @contextlib.contextmanager
    def _watch(self, watch: Watch | None) -> Iterator[None]:
        self.model.watch = watch
        try:
            yield
        finally:
            self.model.watch = None

    # State --------------------------------------------------------------------------------------------------------

    def state(self) -> tuple[Arrays, Progress]:
        """What the rest of the training depends on; the arrays are views, valid until the next step."""
        if self._pending is not None:
            self._read_loss(self._pending)
        arrays: Arrays = {f"current.{name}": tensor_to_numpy(tensor) for name, tensor in self.adapters.named.items()}
        arrays |= {f"best.{name}": array for name, array in self.best.items()}
        for name, (optimiser, tensor) in self._learners.items():
            moments = optimiser.state.get(tensor, {})
            arrays |= {f"{key}.{name}": tensor_to_numpy(value) for key, value in moments.items()}
        progress = {
            "expert_steps": self.expert_steps, "router_steps": self.router_steps, "first_loss": self.first_loss,
            "best_loss": self.best_loss, "schedule": self.schedule.facts(), "layout": asdict(self.adapters.layout),
            "last_loss": self.last_loss, "scores": self.scores, "stale_periods": self.stale_periods,
            "way": self.way, KEY: self.curves.facts(),
        }  # fmt: skip
        return arrays, progress

    def restore(self, arrays: Arrays, progress: Progress) -> None:
        """The reverse of `state`; the schedule and the layout must be those of the state."""
        self.adapters.load_arrays(select(arrays, "current."))
        self.best = select(arrays, "best.")
        self.restore_moments(arrays)
        self.expert_steps, self.router_steps = progress["expert_steps"], progress["router_steps"]
        self.first_loss, self.best_loss = progress["first_loss"], progress["best_loss"]
        self.last_loss, self.scores = progress["last_loss"], progress.get("scores")
        self.stale_periods, self.curves = progress.get("stale_periods", 0), Curves(progress.get(KEY))
        self.way = progress.get("way", 1.0)  # earlier versions did not look at it

    def restore_moments(self, arrays: Arrays) -> None:
        """Those of a state whose layout is the same, and nothing else of it."""
        for name, (optimiser, tensor) in self._learners.items():
            keys = optimiser.REMEMBERS
            if all(f"{key}.{name}" in arrays for key in keys):
                moments = {key: torch.from_numpy(arrays[f"{key}.{name}"].copy()) for key in keys}
                optimiser.state[tensor] = {key: value.to(tensor.device) for key, value in moments.items()}
