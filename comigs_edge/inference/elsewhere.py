"""What a personal model has lost elsewhere: on text that the base itself wrote, against the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from comigs_edge.data.tokenizer import Encoded
from comigs_edge.nn.model import Model
from comigs_edge.progress import Advance

ROWS = 8  # that are read together


class Elsewhere(NamedTuple):
    """How a model differs from its base on such text."""

    change: float  # of the bits, as a share of the base's: 0.003 is 0.3 % more
    divergence: float  # KL divergence from the base in nats, mean of the tokens

    def __str__(self) -> str:
        return f"{self.change:+.1%} (KL divergence from the base {self.divergence:.3f})"


def measure_elsewhere(model: Model, answers: Sequence[Encoded], advance: Advance = lambda tokens: None) -> Elsewhere:
    """Measures a model on its base's own answers, as far as they are scored; one at least must be."""
    base, device = Model(model.base, None), model.base.device
    sums, count = torch.zeros(3, dtype=torch.float64), 0  # nats of the base, of the model, and of the divergence
    with torch.no_grad():
        for start in range(0, len(answers), ROWS):
            group = answers[start : start + ROWS]
            longest = max(len(each.ids) for each in group)
            # Nothing looks ahead, so what stands behind an answer does not change it.
            tokens = torch.tensor([each.ids + [0] * (longest - len(each.ids)) for each in group], device=device)
            hidden = [each(tokens).hidden.view(*tokens.shape, -1) for each in (base, model)]
            for row, (ids, scored, _) in enumerate(group):
                places = [place - 1 for place in range(1, len(ids)) if scored[place]]
                theirs, ours = (model.logits(each[row, places]).log_softmax(-1) for each in hidden)
                losses = [F.nll_loss(each, tokens[row, 1:][places], reduction="sum") for each in (theirs, ours)]
                sums += torch.stack([*losses, F.kl_div(ours, theirs, log_target=True, reduction="sum")]).double().cpu()
                count += len(places)
                advance(len(ids))
    nats, with_experts, divergence = sums.tolist()
    return Elsewhere(with_experts / nats - 1, divergence / count)
