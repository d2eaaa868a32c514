"""AdamW for the router, plus one learned logit offset per expert, shared by all blocks, with its own learning rate.

How much a device gains from the others is a matter of the device, not of a block or a token; but a router with D weights a block
and expert learns it as slowly as everything else, and at a rate that makes it quick its choices for tokens become noise.
So each expert has one offset that is added to its logit in every block. llama.cpp's mixtures have no offsets: they are kept in
the routers themselves, along the mean m of a router's inputs, R + b m^T / (m . m), which adds b to the logit of a token whose
x . m is m . m. (Over SmolLM2's tokens x . m / m . m has a standard deviation of 0.1 to 0.25.) The gradient of b is that of R
times m / (m . m), summed over the blocks: it averages over all tokens, so b may learn fast.

Shapes: N tokens, D width, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from comigs_edge.nn.routing_stats import MeanInputs
from comigs_edge.training.adamw import AdamW


class RouterAdamW(AdamW):
    """AdamW for the routers of all blocks, `tensors` (E, D) in order; with an `offset_rate` the offsets learn too.

    `inputs` must watch the pass whose gradients a step uses; without a watched pass offsets stay. None without an `offset_rate`.
    """

    def __init__(self, tensors: list[Tensor], learning_rate: float, weight_decay: float, offset_rate: float) -> None:
        super().__init__(tensors, learning_rate, weight_decay)
        # Zero before every step: the routers hold what was learned.
        self.offsets = torch.zeros(len(tensors[0]), device=tensors[0].device)  # (E,)
        self.of_offsets = AdamW([self.offsets], offset_rate, 0.0) if offset_rate else None
        self.inputs = MeanInputs() if offset_rate else None

    @torch.no_grad()
    def step(self) -> None:
        """One step for the routers, and one for the offsets."""
        super().step()
        if self.of_offsets is None or self.inputs is None:
            return
        means, self.inputs = self.inputs.means(), MeanInputs()
        if not means:
            return
        pairs = [(router, mean / mean.dot(mean)) for router, mean in zip(self.tensors, means, strict=True)]
        slopes = [router.grad @ direction for router, direction in pairs]  # type: ignore[operator]
        self.offsets.zero_().grad = torch.stack(slopes).sum(0)
        self.of_offsets.step()
        for router, direction in pairs:
            router.addr_(self.offsets, direction)
