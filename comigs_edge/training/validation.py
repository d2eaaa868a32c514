"""The validation rows of a training: those that its loss is measured on, and those that the router learns from."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from comigs_edge.nn.loss import next_token_loss
from comigs_edge.nn.model import Model
from comigs_edge.training.activation_cache import ActivationCache
from comigs_edge.training.batches import Batch, Rows
from comigs_edge.training.schedule import Schedule


class Validation:
    """The mean loss of `model` on the first `measured_rows` of `rows`.

    Those are at most half of the rows where a router `learns` from the others, `router_rows`: a loss on rows that the router
    has learned from would flatter every later state. A single row serves for both.
    """

    def __init__(self, model: Model, rows: Rows, schedule: Schedule, cache: ActivationCache | None, learns: bool) -> None:
        self.rows, self.cache = rows, cache
        self._model, self._batch, self._block_format = model, schedule.batch, schedule.block_format
        learns = learns and len(rows) > 1
        self.measured_rows = min(schedule.validation_rows, len(rows) // 2 if learns else len(rows))
        self.router_rows = rows.after(self.measured_rows) if learns else rows

    def measure(self, as_stored: bool = True, rows: int | None = None) -> float:
        """Mean loss in nats a token of the measured rows, or of the first `rows` of them."""
        num_rows = self.measured_rows if rows is None else min(rows, self.measured_rows)
        return self.mean_loss(self.rows.first(num_rows, self._batch), as_stored)

    def mean_loss(self, batches: list[Batch], as_stored: bool = True) -> float:
        """Mean loss in nats a token of these batches of `rows`; `as_stored`: in the weights of the exported file.

        Leaves the model in that format.
        """
        total, count = 0.0, 0
        self._model.block_format = self._block_format if as_stored else None
        with torch.no_grad():
            for batch in batches:
                total += float(batch_loss(self._model, with_below(batch, self.cache))[0])
                count += batch.num_scored
        return total / count


def with_below(batch: Batch, cache: ActivationCache | None) -> Batch:
    """The batch with what `cache` has of it."""
    return batch if cache is None else replace(batch, below=cache(batch))


def batch_loss(model: Model, batch: Batch, with_balance: bool = False) -> tuple[Tensor, Tensor | None]:
    """Summed loss in nats of a batch, weighted where it says so, and its balance loss."""
    batch = batch.to(model.base.device)
    out = model(batch.tokens, batch.documents, with_balance, batch.below)
    return next_token_loss(model.base, out.hidden, batch.targets, batch.scored, batch.weights), out.balance
