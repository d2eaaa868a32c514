"""The transformer with a mixture of experts in each block: frozen base, trainable adapters.

Computes what llama.cpp computes for `llama`, `qwen2` and `qwen3`: RMSNorm, rotary embedding of interleaved pairs, grouped
query attention, SwiGLU, tied or untied output. Shapes: B batch, T time, N = B*T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from comigs_edge.adapters import Adapters
from comigs_edge.base import Base, rope_tables
from comigs_edge.lora import LoRA, merge
from comigs_edge.lora_mixture import mixture
from comigs_edge.merged_mlp import frozen_mlp, quantised_mixture
from comigs_edge.moe import Frozen, Routing, balance_loss, route
from comigs_edge.norm import rms_norm
from comigs_edge.parallel import small_experts, straight_through

# Tokens whose logits are held at once: 128 x 49,152 float32 are 25 MB.
LOSS_CHUNK = 128


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

    def __init__(self, base: Base, adapters: Adapters | None, only: tuple[int, ...] | None = None) -> None:
        self.base, self.adapters, self.only = base, adapters, only
        self.block_format: str | None = None
        self.cos, self.sin = torch.empty(0), torch.empty(0)

    def __call__(self, tokens: Tensor, documents: Tensor | None = None, with_balance: bool = False) -> Output:
        """`tokens` (B, T) ids; `documents` (B, T) numbers the document of each token: attention stays inside it."""
        batch, time = tokens.shape
        self._extend_rope(time)
        mask = None if documents is None else _mask(documents)
        x = F.embedding(tokens.reshape(-1), self.base.embedding)  # (N, D)
        # A reentrant checkpoint asks its input for a gradient, even where only the attention's updates need one.
        x.requires_grad_(torch.is_grad_enabled() and self.adapters is not None)
        balance: list[Tensor] = []
        for index in range(self.base.shape.num_blocks):
            x, loss = self._run_block(index, x, (batch, time), mask, with_balance)
            if loss is not None:
                balance.append(loss)
        hidden = rms_norm(x, self.base.output_norm, self.base.shape.norm_eps)
        return Output(hidden, torch.stack(balance).mean() if balance else None)

    def logits(self, hidden: Tensor) -> Tensor:  # (N, D) -> (N, V)
        """Logits of every token of the vocabulary."""
        return F.linear(hidden, self.base.output)

    def _extend_rope(self, time: int) -> None:
        if len(self.cos) < time:
            self.cos, self.sin = rope_tables(self.base.shape, self.base.rope_factors, time)

    def _run_block(
        self, index: int, x: Tensor, size: tuple[int, int], mask: Tensor | None, with_balance: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = self._recomputed(self._attention, index, x, size, mask)
        out, routing = self._mlp(index, x)
        loss = balance_loss(routing) if with_balance and routing is not None else None
        return x + out, loss

    def _recomputed(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """The function's result; its intermediate tensors are made again for the backward pass and not kept."""
        if self.adapters is None or not torch.is_grad_enabled():
            return function(*arguments)
        # The non-reentrant kind was measured to keep more memory than no checkpoint at all (834 against 662 MB).
        result: Tensor = checkpoint(function, *arguments, use_reentrant=True, preserve_rng_state=False)
        return result

    def _mlp(self, index: int, x: Tensor) -> tuple[Tensor, Routing | None]:  # (N, D) -> (N, D)
        block, eps = self.base.blocks[index], self.base.shape.norm_eps
        mlp = Frozen(block.ffn_norm, eps, block.gate_up, block.down)
        if self.adapters is None:
            return frozen_mlp(x, mlp), None
        routing = self._routing(index, x)
        scale = self.adapters.layout.expert_scale
        if self.adapters.layout.form == "parallel":
            small = self._recomputed(self._small_experts, index, x, None if routing is None else routing.weights)
            return frozen_mlp(x, mlp) + small, routing
        experts = self._chosen(self.adapters.experts[index])
        if self.block_format is None:
            return mixture(x, mlp, experts, routing, scale), routing
        return quantised_mixture(x, mlp, experts, routing, scale, self.block_format), routing

    def _chosen(self, experts: list[Any]) -> list[Any]:
        return experts if self.only is None else [experts[i] for i in self.only]

    def _routing(self, index: int, x: Tensor) -> Routing | None:
        """None where one expert is alone."""
        assert self.adapters is not None
        router = self.adapters.routers[index]
        if router is not None and self.only is not None:
            router = router[list(self.only)]
        if router is None or len(router) == 1:
            return None
        logits = self._recomputed(self._router_logits, index, x, router)
        return route(logits, min(self.adapters.layout.experts_per_token, len(router)))

    def _small_experts(self, index: int, x: Tensor, weights: Tensor | None) -> Tensor:
        assert self.adapters is not None
        normed = rms_norm(x, self.base.blocks[index].ffn_norm, self.base.shape.norm_eps)
        experts = self._chosen(self.adapters.parallel[index])
        return small_experts(normed, experts, weights, self.adapters.layout.expert_scale, self.block_format)

    def _router_logits(self, index: int, x: Tensor, router: Tensor) -> Tensor:  # (N, D), (E, D) -> (N, E)
        return F.linear(rms_norm(x, self.base.blocks[index].ffn_norm, self.base.shape.norm_eps), router)

    def _attention(self, index: int, x: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor:
        """(N, D) -> (N, D): x and what the attention adds to it."""
        block, shape = self.base.blocks[index], self.base.shape
        batch, time = size
        residual, x = x, rms_norm(x, block.attn_norm, shape.norm_eps)
        queries, keys = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
        update = self._attention_lora(index)
        qkv_names = ("attn_q", "attn_k", "attn_v")
        qkv = self._updated(x, block.qkv, block.qkv_bias, update, qkv_names, (queries, keys, keys))  # (N, Q + 2 KV)
        q, k, v = (
            part.view(batch, time, -1, shape.head_width).transpose(1, 2)
            for part in torch.split(qkv, [queries, keys, keys], dim=-1)
        )  # (B, H, T, head), (B, KV, T, head) twice
        if block.q_norm is not None and block.k_norm is not None:
            q, k = rms_norm(q, block.q_norm, shape.norm_eps), rms_norm(k, block.k_norm, shape.norm_eps)
        group = shape.num_heads // shape.num_kv_heads
        k, v = (_repeat_heads(part, group) for part in (self._rotate(k), v))
        out = F.scaled_dot_product_attention(self._rotate(q), k, v, attn_mask=mask, is_causal=mask is None)
        out = out.transpose(1, 2).reshape(batch * time, queries)
        output_names, output_bias = ("attn_output",), block.attn_output_bias
        return residual + self._updated(out, block.attn_output, output_bias, update, output_names, (shape.width,))

    def _attention_lora(self, index: int) -> dict[str, LoRA] | None:
        if self.adapters is None or not self.adapters.attention:
            return None
        # The shared attention update belongs to the generalist: it is off where the generalist is.
        return self.adapters.attention[index] if self.only is None or 0 in self.only else None

    def _updated(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, update: dict[str, LoRA] | None, names: tuple[str, ...],
        widths: tuple[int, ...],
    ) -> Tensor:  # fmt: skip
        """x times a matrix whose rows are those of `names`, `widths` of each, with their low-rank updates."""
        if update is None or self.adapters is None:
            return F.linear(x, weight, bias)
        scale, name = self.adapters.layout.scale, self.block_format
        if name is None:
            low = [F.linear(F.linear(x, update[n].a), update[n].b) for n in names]
            return F.linear(x, weight, bias) + torch.cat(low, dim=-1) * scale
        parts = zip(torch.split(weight, list(widths)), names, strict=True)
        return F.linear(
            x, torch.cat([straight_through(merge(part, update[n], scale), name) for part, n in parts]), bias
        )

    def _rotate(self, x: Tensor) -> Tensor:  # (B, H, T, head)
        """Rotary embedding of interleaved pairs, for which `base.py` orders the rows of q and k."""
        width, time = self.base.shape.rope_width, x.shape[2]
        even, odd = x[..., :width:2], x[..., 1:width:2]
        cos, sin = self.cos[:time], self.sin[:time]
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
        return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), dim=-1)


def _repeat_heads(x: Tensor, group: int) -> Tensor:  # (B, KV, T, head) -> (B, H, T, head)
    if group == 1:
        return x
    batch, heads, time, width = x.shape
    return x[:, :, None].expand(batch, heads, group, time, width).reshape(batch, heads * group, time, width)


def _mask(documents: Tensor) -> Tensor:  # (B, T) -> (B, 1, T, T)
    """True where a token may look: at earlier tokens of its own document, and at itself."""
    time = documents.shape[1]
    causal = torch.ones(time, time, dtype=torch.bool, device=documents.device).tril()
    return ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]


class _NextTokenLoss(torch.autograd.Function):
    """Summed cross-entropy, chunk by chunk: the output matrix is frozen, so the gradient of the hidden state is made
    with the loss and no (N, V) logits are ever kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, output: Tensor, targets: Tensor) -> Tensor:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = hidden.new_zeros((), dtype=torch.float64)
        logits_buffer = hidden.new_empty(LOSS_CHUNK, len(output))
        for start in range(0, len(hidden), LOSS_CHUNK):
            rows, wanted = hidden[start : start + LOSS_CHUNK], targets[start : start + LOSS_CHUNK, None]
            logits = torch.mm(rows, output.T, out=logits_buffer[: len(rows)])  # (chunk, V)
            logits.sub_(logits.amax(-1, keepdim=True))
            at_target = logits.gather(1, wanted)
            sums = logits.exp_().sum(-1, keepdim=True)
            total += (sums.log() - at_target).sum(dtype=torch.float64)
            if gradient is not None:  # softmax minus one at the target, times the output matrix
                probabilities = logits.div_(sums)
                probabilities.scatter_add_(1, wanted, torch.full_like(sums, -1.0))
                torch.mm(probabilities, output, out=gradient[start : start + LOSS_CHUNK])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total.float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None


def next_token_loss(model: Model, hidden: Tensor, targets: Tensor, scored: Tensor) -> Tensor:
    """Summed cross-entropy in nats of the `targets` (N,) where `scored` (N,) is true; hidden is (N, D)."""
    rows = scored.nonzero().squeeze(1)
    loss: Tensor = _NextTokenLoss.apply(hidden[rows], model.base.output, targets[rows])  # type: ignore[no-untyped-call]
    return loss
