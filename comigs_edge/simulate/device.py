"""A virtual device: its own adapters, router, optimisers and rows on the shared base, trained by `training.trainer.Trainer`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from comigs_edge.inference.evaluate import Score, TestText, in_torch
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.nn.tensors import tensor_to_numpy
from comigs_edge.nn.weights import Base
from comigs_edge.progress import Advance
from comigs_edge.training.batches import Batch, Rows
from comigs_edge.training.closing import Closing, closes
from comigs_edge.training.event import Event
from comigs_edge.training.optimiser import Optimiser
from comigs_edge.training.trainer import Trainer
from coordinator.protocol.wire import Arrays


class Leaky(Trainer):
    """The loop of the paper's published code, to measure what its leak does; never used by the product.

    There every backward pass fills the gradients of experts and router, and each optimiser clears its own alone, after its
    step. So the router's first step of a turn also descends on the training gradients of all expert steps since its last
    turn, and the first expert step after a turn on the validation gradients of all the router's steps.
    """

    def _enable_gradients(self, learning: list[Optimiser]) -> None:
        for name, tensor in self.adapters.named.items():
            tensor.requires_grad_(name not in self.frozen)

    def _optimise(self, learning: list[Optimiser], batch: Batch) -> float:
        loss = super()._optimise(learning, batch)
        for optimiser in learning:
            for tensor in optimiser.tensors:
                tensor.grad = None
        return loss

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """The trainer's own, and the gradients that wait for the other group's next step."""
        arrays, progress = super().state()
        for name, tensor in self.adapters.named.items():
            if tensor.grad is not None:
                arrays[f"grad.{name}"] = tensor_to_numpy(tensor.grad)
        return arrays, progress

    def restore(self, arrays: Arrays, progress: dict[str, Any]) -> None:
        """The reverse of `state`."""
        super().restore(arrays, progress)
        for name, tensor in self.adapters.named.items():
            if f"grad.{name}" in arrays:
                tensor.grad = torch.from_numpy(arrays[f"grad.{name}"].copy()).to(tensor.device)


@dataclass
class Local:
    """What the local steps of one round were."""

    training_loss: float | None  # mean of the expert steps, nats a token
    validation_loss: float | None  # if a router's period ended in this round
    expert_scores: list[list[float]] | None  # at the end of that period
    tokens: int
    seconds: float

    def then(self, rest: Local) -> Local:
        """Both parts of a round that the exchange came between."""
        return replace(
            rest, training_loss=self.training_loss, tokens=self.tokens + rest.tokens, seconds=self.seconds + rest.seconds
        )


class Closed(NamedTuple):
    """What a device's closing phase has cost, and the scores of what it keeps."""

    scores: dict[str, Score]
    tokens: int
    seconds: float


class Device:
    """One device of the fleet; `tests` has the text that its model is measured on, by the name it is reported under."""

    def __init__(self, name: str, trainer: Trainer, tests: dict[str, TestText]) -> None:
        self.name, self.trainer, self.tests = name, trainer, tests
        self.closing_steps = 0  # that were done

    @property
    def adapters(self) -> Adapters:
        """What is trained."""
        return self.trainer.adapters

    @property
    def is_within_period(self) -> bool:
        """Whether steps were done since the last look at the validation text."""
        schedule, steps = self.trainer.schedule, self.trainer.expert_steps
        return steps % schedule.router_period > 0 and steps < schedule.steps

    def train(self, until: int, advance: Advance, ends_before_router: bool = False) -> Local:
        """Trains up to `until` expert steps in all, then the router's steps due there unless `ends_before_router`."""
        start, events = time.monotonic(), list[Event]()
        for event in self.trainer.run(until, ends_before_router):
            events.append(event)
            advance(1)
        losses = [event.loss for event in events if event.phase == "expert"]
        validations = [event.validation_loss for event in events if event.validation_loss is not None]
        return Local(
            sum(losses) / len(losses) if losses else None, validations[-1] if validations else None,
            self.trainer.scores if validations else None, sum(event.tokens for event in events),
            time.monotonic() - start,
        )  # fmt: skip

    def measure(self) -> dict[str, Score]:
        """The scores of its model on its test text, in the weights of the exported file."""
        self.trainer.model.block_format = self.trainer.schedule.block_format
        return {name: in_torch(self.trainer.model, text) for name, text in self.tests.items()}

    def measure_best(self) -> dict[str, Score]:
        """The scores of its state with the lowest validation loss."""
        now = self.adapters.arrays()
        self.adapters.load_arrays(self.trainer.best)
        scores = self.measure()
        self.adapters.load_arrays(now)
        return scores

    def close(self, ordinary: Rows, seed: int, advance: Advance) -> Closed:
        """Ends as a training does: its best state gets a zero expert, or stays as it is if nothing is to close."""
        trainer, base, tokens, start = self.trainer, self.trainer.model.base, 0, time.monotonic()
        if not closes(trainer):
            return Closed(self.measure_best(), 0, 0.0)
        together = trainer.schedule.batch * trainer.training.context
        closing = Closing(trainer, ordinary, seed, lambda adapters: new_model(base, adapters, together))
        for event in closing.run():
            tokens, self.closing_steps = tokens + event.tokens, closing.steps
            advance(1)
        seconds = time.monotonic() - start
        if not closing.is_kept:
            return Closed(self.measure_best(), tokens, seconds)
        # The model is in the file's format.
        return Closed({name: in_torch(closing.model, text) for name, text in self.tests.items()}, tokens, seconds)

    def loss_to_choose_by(self) -> float:
        """Validation loss of as many rows beside the measured ones: what is chosen by a loss flatters it."""
        validation, count = self.trainer.validation, self.trainer.validation.measured_rows
        others = validation.rows.after(min(count, len(validation.rows) // 2))
        return validation.mean_loss(others.first(count, self.trainer.schedule.batch))

    def forget_moments(self, names: Iterable[str]) -> None:
        """The optimiser's moments of these experts' tensors begin anew."""
        for name in names:
            self.trainer.experts.state.pop(self.adapters.named[name], None)

    def load(self, arrays: Arrays) -> None:
        """Takes over shared tensors; the rest stays as it is."""
        self.adapters.load_arrays({**self.adapters.arrays(), **arrays})


def new_model(base: Base, adapters: Adapters, tokens: int) -> Model:
    """The model of a device that trains on `tokens` tokens a step."""
    # Small batches are computed without doing anything twice; large ones keep only the MLP's products.
    return Model(base, adapters.to(base.device), checkpointing="none" if tokens <= 1024 else "attention")
