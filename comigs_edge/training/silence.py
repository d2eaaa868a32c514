"""The first routers of a zero expert, by least squares: silent on ordinary text, and absent from the device's own.

In every block the zero expert's logit is fitted to lie `MARGIN` above the largest of the experts' on ordinary text, as the base
reads it, and as much below it on the device's own text, as the personal model reads it: what either would read if the router
always chose right. That costs forward passes of a few rows, where learning it from the loss took dozens of steps.

Shapes: N tokens, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.nn.routing import Routing
from comigs_edge.training.batches import Rows
from comigs_edge.training.schedule import FIT_ROWS

MARGIN = 3.0
RIDGE = 0.1  # of the mean square of the inputs
BYTES = 1 << 26  # of the sums that are held at once: of as many blocks as they have room for

Sums = dict[int, tuple[Tensor, Tensor]]  # of a block: X^T X (D, D) and X^T y (D,), means over tokens


@torch.no_grad()
def fit_zero(adapters: Adapters, own: Rows, ordinary: Rows, rows: int, make_model: Callable[[Adapters], Model]) -> None:
    """Writes the last row of every router of `adapters`, which have a zero expert; `rows` are read at once."""
    personal = adapters.without_zero()
    silent = Adapters.initial(personal.layout, personal.hparams, 0)  # whatever their routers say, they change nothing
    texts = (own, make_model(personal), -MARGIN), (ordinary, make_model(silent), MARGIN)
    for blocks in _groups(adapters):
        routers = {block: adapters.named[f"router.blk.{block}"] for block in blocks}
        sums: Sums = {}
        for text, model, margin in texts:
            _add(sums, text, model, margin, routers, rows)
        for block, (square, product) in sums.items():
            square.diagonal().add_(RIDGE * square.diagonal().mean())
            routers[block][-1] = torch.linalg.solve(square, product)


def _groups(adapters: Adapters) -> Iterator[range]:
    hparams = adapters.hparams
    count = max(1, BYTES // (4 * hparams.width**2))
    for first in range(adapters.first_block, hparams.num_blocks, count):
        yield range(first, min(first + count, hparams.num_blocks))


def _add(sums: Sums, text: Rows, model: Model, margin: float, routers: dict[int, Tensor], rows: int) -> None:
    """Adds what the routers of some blocks read in the first rows of a text, and what their last row is to say to it."""
    batches = text.first(FIT_ROWS, rows)
    tokens = sum(batch.tokens.numel() for batch in batches)

    def watch(block: int, normed: Tensor, _: Routing | None) -> None:
        if block not in routers:
            return
        x = normed.float()  # (N, D)
        wanted = (x @ routers[block][:-1].T).amax(1) + margin
        square, product = sums.get(block) or (x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1]))
        sums[block] = square.addmm_(x.T, x, alpha=1 / tokens), product.addmv_(x.T, wanted, alpha=1 / tokens)

    model.watch = watch
    for batch in batches:
        model(batch.tokens.to(model.base.device), batch.documents)
