"""The closing phase of a training: the best state gets a zero expert, and the router alone learns when to be silent.

It begins where least squares put it (`silence.py`), or as it was in the model before, and learns from the device's validation
text and from ordinary text: where the experts help it calls them, elsewhere the base is to speak alone. Its rate falls to zero.
The experts are those of the best state to the last bit, and what comes out is what is kept. docs/results.md has what was tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from comigs_edge.arrays import select
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import is_router
from comigs_edge.nn.model import Model
from comigs_edge.training.batches import Batch, Rows
from comigs_edge.training.checkpoint import Progress
from comigs_edge.training.event import Event
from comigs_edge.training.schedule import FIT_ROWS, Schedule
from comigs_edge.training.silence import fit_zero
from comigs_edge.training.trainer import Trainer
from coordinator.protocol.wire import Arrays

PREFIX = "closing."  # of its arrays in a checkpoint, and with `PROGRESS` of what JSON can hold
PROGRESS = "closing"
SHARE = 0.25  # of a router's rows are ordinary text
OWN = 4.0  # what the device's own text counts for a router, by its mean loss, where ordinary text counts 1


class MixedRows(Rows):
    """Batches of two texts: the first rows are of `one`, and the others, a `share`, of `other`.

    With `odds` each text counts by its mean loss, `one` so many times as much as `other`, however many targets of either are
    scored. Otherwise all targets count alike.
    """

    def __init__(self, one: Rows, other: Rows, share: float, odds: float | None = None) -> None:
        self.one, self.other, self.share, self.odds = one, other, share, odds

    def batch(self, number: int, size: int) -> Batch:
        """The batch with this number; where a share of `size` is no whole number of rows, some batches have one more."""
        done, then = (math.floor(self.share * size * each) for each in (number, number + 1))  # rows of `other`
        parts = self.one.read(number * size - done, size - (then - done)), self.other.read(done, then - done)
        tensors = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "documents", "targets", "scored")
        }
        return Batch(**tensors, places=(), weights=None if self.odds is None else self._weights(*parts, self.odds))

    def _weights(self, one: Batch, other: Batch, odds: float) -> Tensor:
        """Over many batches the weights of `one` add up to `odds` times those of `other`, and both to the number of batches."""
        size = len(one.tokens) + len(other.tokens)
        one_row, other_row = odds / (size * (1 - self.share)), 1 / (size * self.share)
        parts = (one, one_row * len(one.tokens)), (other, other_row * len(other.tokens))
        return torch.cat([part.scored * (weight / (1 + odds) / max(1, part.num_scored)) for part, weight in parts])


def router_rows(own: Rows, ordinary: Rows, odds: float = OWN) -> MixedRows:
    """What a router with a zero expert learns from."""
    return MixedRows(own, ordinary, SHARE, odds)


def closes(main: Trainer) -> bool:
    """Whether a training that is done has a closing phase: one that has found nothing better than its start has none."""
    return main.schedule.closing > 0 and main.is_better


def ordinary_rows(schedule: Schedule) -> int:
    """The most rows of ordinary text that the closing phase of this schedule reads."""
    return max(FIT_ROWS, math.ceil(schedule.closing * SHARE * schedule.batch))


class Closing:
    """The closing phase of the training that `main` has done; `adapters` are what it ends with.

    `before` has the adapters that the training goes on from, if they have a zero expert: `to_beat` is their validation loss, as
    what comes out would take their place. Otherwise it is that of the start of `main`; a training that goes on from a model
    without a zero expert gives it one whatever that costs.
    """

    def __init__(
        self, main: Trainer, ordinary: Rows, seed: int, make_model: Callable[[Adapters], Model], odds: float = OWN,
        before: Arrays | None = None,
    ) -> None:  # fmt: skip
        self.main, self._before = main, before
        gets_one = before is None and main.schedule.goes_on  # in any case, as it is asked for
        self.to_beat = math.inf if main.first_loss is None or gets_one else main.first_loss
        best = Adapters.from_arrays(main.adapters.layout, main.adapters.hparams, main.best)
        schedule = replace(
            main.schedule, steps=1, router_period=1, router_steps=main.schedule.closing, balance_weight=0.0, jointly=False,
            rate_factor=1.0, router_offset_rate=0.0, quantise_start=0.0 if main.schedule.quantise_start < 1 else math.inf,
        )  # fmt: skip
        self._make_model, self._ordinary = make_model, ordinary
        self._trainer = Trainer(make_model(best.with_zero(seed)), main.training, main.validation.rows, schedule)
        self._trainer.router_rows = router_rows(self._trainer.validation.router_rows, ordinary, odds)
        self._trainer.expert_steps = 1  # all that is left are router steps

    @property
    def model(self) -> Model:
        """With what is trained: experts that stay as they are, and the router."""
        return self._trainer.model

    @property
    def adapters(self) -> Adapters:
        """Those of `model`."""
        return self._trainer.adapters

    @property
    def steps(self) -> int:
        """Those that were done."""
        return self._trainer.router_steps

    @property
    def is_done(self) -> bool:
        """Whether all of them are."""
        return self._trainer.is_done

    @property
    def is_kept(self) -> bool:
        """Whether it is done, and has not spoiled a slight gain."""
        return self.is_done and self.loss < self.to_beat

    @property
    def loss(self) -> float:
        """Validation loss of what came out, nats a token."""
        return self._trainer.last_loss

    @property
    def loss_before(self) -> float | None:
        """Validation loss of what the training goes on from, nats a token."""
        return self.main.first_loss if math.isinf(self.to_beat) else self.to_beat

    def run(self) -> Iterator[Event]:
        """Does step after step, counted behind those of `main`; stop iterating to interrupt."""
        done = self.main.expert_steps, self.main.router_steps
        trainer, schedule = self._trainer, self.main.schedule
        assert trainer.router is not None
        if not self.steps:
            self._begin()
        while not self.is_done:
            trainer.router.learning_rate = schedule.router_learning_rate * (1 - self.steps / schedule.closing)
            event = trainer.step()
            router_steps = done[1] + event.router_steps
            yield replace(event, phase="closing", expert_steps=done[0], router_steps=router_steps, is_best=False)

    def _begin(self) -> None:
        """Puts the routers where they begin: those of a zero expert that was there, or by least squares."""
        if self._before is None:
            own, rows = self._trainer.validation.router_rows, self.main.schedule.batch
            fit_zero(self.adapters, own, self._ordinary, rows, self._make_model)
            return
        arrays = self.adapters.arrays()
        self.adapters.load_arrays(self._before)
        self.to_beat = self._trainer.validate()
        for name in filter(is_router, arrays):
            arrays[name][-1] = self._before[name][-1]
        self.adapters.load_arrays(arrays)

    def state(self) -> tuple[Arrays, Progress]:
        """What a checkpoint needs beside the state of `main`: router and moments; the arrays are views."""
        arrays, progress = self._trainer.state()
        kept = {PREFIX + name: array for name, array in arrays.items() if name.split(".")[1] == "router" and name[:5] != "best."}
        return kept, {PROGRESS: {name: progress[name] for name in ("router_steps", "last_loss")} | {"to_beat": self.to_beat}}

    def restore(self, arrays: Arrays, progress: Progress) -> None:
        """The reverse of `state`, after the same `main`; earlier versions have no `to_beat`."""
        self.to_beat = progress[PROGRESS].get("to_beat", self.to_beat)
        current = {f"current.{name}": array for name, array in self.adapters.arrays().items()}
        self._trainer.restore(current | select(arrays, PREFIX), {
            "expert_steps": 1, "first_loss": None, "best_loss": math.inf, **progress[PROGRESS]
        })  # fmt: skip
