"""The transformer with a mixture of experts in each block: frozen base, trainable adapters.

Computes what llama.cpp computes for `llama`, `qwen2` and `qwen3`: RMSNorm, rotary embedding of interleaved pairs, grouped
query attention, SwiGLU, tied or untied output. Products are computed in the type of the base's weights; the residual
stream, the norms and the loss are float32. Shapes: B batch, T time, N = B*T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.attention import Update, Window, attention, rope_tables, window
from comigs_edge.nn.merged_mlp import frozen_mlp
from comigs_edge.nn.mlp import Frozen, Pass
from comigs_edge.nn.norm import rms_norm
from comigs_edge.nn.recompute import Policy
from comigs_edge.nn.routing import Routing, balance_loss, route
from comigs_edge.nn.weights import Base
from profiles.cost import Checkpointing

Watch = Callable[[int, Tensor, Routing | None], None]  # block, what its router read (N, D), what it decided if there is one


@dataclass
class Output:
    """What one forward pass gives."""

    hidden: Tensor  # (N, D), after the last norm
    balance: Tensor | None  # mean load-balance loss over the blocks


class Model:
    """Base and adapters together. `only` limits the mixture: None for all experts, or the indices that take part.

    `block_format` names the format in which the exported file will hold what training changes: those weights are then fake
    quantised in the forward pass; None computes with the weights as they are.
    """

    def __init__(
        self, base: Base, adapters: Adapters | None, only: tuple[int, ...] | None = None, checkpointing: Checkpointing = "block",
        captures: bool = False,
    ) -> None:  # fmt: skip
        self.base, self.adapters, self.only, self.checkpointing = base, adapters, only, checkpointing
        self.captures = captures  # whether its training steps are captured as CUDA graphs
        self.first_block = 0 if adapters is None else adapters.first_block  # with experts
        if checkpointing != "block" and not base.keep:
            raise ValueError("a base that is dequantised block by block needs blocks to be computed again")
        self.block_format: str | None = None
        self.watch: Watch | None = None  # called with what every block's router read and decided
        self._turns = torch.empty(0)

    def __call__(
        self, tokens: Tensor, documents: Tensor | None = None, with_balance: bool = False, below: Tensor | None = None
    ) -> Output:
        """`tokens` (B, T) ids; `documents` (B, T) numbers the document of each token: attention stays inside it.

        `below` (N, D) is what `self.below` gives for them, where that is known already.
        """
        x = self.below(tokens, documents) if below is None else below.detach()
        blocks = range(self.first_block, self.base.hparams.num_blocks)
        x, balance = self._through(blocks, x, tokens, documents, with_balance)
        hidden = rms_norm(x, self.base.output_norm, self.base.hparams.norm_eps)
        return Output(hidden, torch.stack(balance).mean() if balance else None)

    @torch.no_grad()
    def below(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """The residual stream (N, D) where the first block with experts reads it; valid until the next forward pass.

        No training changes it.
        """
        x = self.base.embed(tokens.reshape(-1))
        return self._through(range(self.first_block), x, tokens, documents)[0] if self.first_block else x

    def _through(
        self, blocks: range, x: Tensor, tokens: Tensor, documents: Tensor | None, with_balance: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """(N, D) -> (N, D) through these blocks, and their load-balance losses."""
        where = window(tokens, documents, self._rotation(tokens.shape[1]))
        learns = self.adapters is not None and torch.is_grad_enabled()
        checkpointing = "none" if self.adapters is None else self.checkpointing
        policy = Policy(checkpointing, learns, self.base.buffers, self.block_format)
        x.requires_grad_(learns and policy.recomputes)  # recomputing gives gradients only where its input asks for one
        balance: list[Tensor] = []
        for number in blocks:
            # The balance loss is one of all tokens.
            x, loss = policy.run(partial(self._block, number, with_balance), number, where, x, whole=with_balance)
            if loss is not None:
                balance.append(loss)
        return x, balance

    def memory(self) -> list[Tensor]:
        """What passes have written to or read beside weights and adapters; later passes may take other memory."""
        return [*self.base.buffers.all(), self._turns]

    def logits(self, hidden: Tensor) -> Tensor:  # (N, D) -> (N, V)
        """Logits of every token of the vocabulary."""
        hidden = hidden.to(self.base.dtype)
        return torch.cat([F.linear(hidden, part) for part in self.base.output_chunks(1 << 14)], dim=-1).float()

    def _rotation(self, time: int) -> Tensor:  # (T, 1, rope_width / 2), complex
        if len(self._turns) < time:
            tables = rope_tables(self.base.hparams, self.base.rope_factors, time)
            self._turns = torch.complex(*tables)[:, None].to(self.base.device)
        return self._turns

    def _block(self, number: int, with_balance: bool, where: Window, x: Tensor, purpose: Pass) -> tuple[Tensor, Tensor | None]:
        """Attention, then the MLP with its experts: (N, D) -> (N, D), and the block's load-balance loss."""
        block, hparams = self.base.block(number), self.base.hparams
        normed = rms_norm(x, block.attn_norm, hparams.norm_eps, self.base.dtype)
        x = x + attention(normed, block, hparams, where, self._attention_update(number), purpose.buffers)
        normed = rms_norm(x, block.ffn_norm, hparams.norm_eps, self.base.dtype)
        mlp = Frozen(block.ffn_gate_up, block.ffn_down)
        if self.adapters is None or number < self.first_block:
            return x + frozen_mlp(normed, mlp, purpose), None
        experts, scale = self.adapters.experts[number], self.adapters.layout.expert_scale
        if self.only is not None:
            experts = [experts[index] for index in self.only]
        routing = self._routing(number, normed)
        if self.watch is not None:
            self.watch(number, normed, routing)
        x = self.adapters.form.mix(x, normed, mlp, experts, routing, scale, purpose)
        return x, balance_loss(routing) if with_balance and routing is not None else None

    def _attention_update(self, index: int) -> Update | None:
        # The shared attention update belongs to the generalist: it is off where the generalist is.
        is_off = index < self.first_block or (self.only is not None and 0 not in self.only)
        if self.adapters is None or not self.adapters.attention or is_off:
            return None
        return Update(self.adapters.attention[index], self.adapters.layout.scale, self.block_format)

    def _routing(self, index: int, normed: Tensor) -> Routing | None:
        """None where one expert is alone."""
        assert self.adapters is not None
        router = self.adapters.routers[index]
        if router is not None and self.only is not None:
            router = router[list(self.only)]
        if router is None or len(router) == 1:
            return None
        logits = F.linear(normed, router.to(normed.dtype)).to(router.dtype)
        return route(logits, min(self.adapters.layout.experts_per_token, len(router)))
