"""The llama transformer with a mixture of experts in each block: frozen base, trainable adapters.

Computes what llama.cpp computes for the `llama` architecture: RMSNorm, rotary embedding of interleaved pairs, grouped
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
from comigs_edge.lora import LoRA
from comigs_edge.moe import Frozen, Routing, balance_loss, inverse_rms, mixture, rms_norm_backward, route

# Tokens whose logits are held at once: 128 x 49,152 float32 are 25 MB.
LOSS_CHUNK = 128


@dataclass
class Output:
    """What one forward pass gives."""

    hidden: Tensor  # (N, D), after the last norm
    balance: Tensor | None  # mean load-balance loss over the blocks


class Model:
    """Base and adapters together. `only` limits the mixture: None for all experts, or the indices that take part."""

    def __init__(self, base: Base, adapters: Adapters | None, only: tuple[int, ...] | None = None) -> None:
        self.base, self.adapters, self.only = base, adapters, only
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
        if self.adapters is None:
            gate, up = F.linear(rms_norm(x, block.ffn_norm, eps), block.gate_up).chunk(2, dim=-1)
            return F.linear(F.silu(gate) * up, block.down), None
        experts, router = self.adapters.experts[index], self.adapters.routers[index]
        if self.only is not None:
            experts = [experts[i] for i in self.only]
            router = None if router is None or len(experts) == 1 else router[list(self.only)]
        routing = None
        if router is not None:
            logits = self._recomputed(self._router_logits, index, x, router)
            routing = route(logits, min(self.adapters.layout.experts_per_token, len(experts)))
        mlp = Frozen(block.ffn_norm, eps, block.gate_up, block.down)
        return mixture(x, mlp, experts, routing, self.adapters.layout.scale), routing

    def _router_logits(self, index: int, x: Tensor, router: Tensor) -> Tensor:  # (N, D), (E, D) -> (N, E)
        return F.linear(rms_norm(x, self.base.blocks[index].ffn_norm, self.base.shape.norm_eps), router)

    def _attention(self, index: int, x: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor:
        """(N, D) -> (N, D): x and what the attention adds to it."""
        block, shape = self.base.blocks[index], self.base.shape
        batch, time = size
        residual, x = x, rms_norm(x, block.attn_norm, shape.norm_eps)
        queries, keys = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
        qkv = F.linear(x, block.qkv, block.qkv_bias)  # (N, Q + 2 KV)
        if lora := self._attention_lora(index):
            qkv = qkv + torch.cat([self._low_rank(x, lora[n]) for n in ("attn_q", "attn_k", "attn_v")], dim=-1)
        q, k, v = (
            part.view(batch, time, -1, shape.head_width).transpose(1, 2)
            for part in torch.split(qkv, [queries, keys, keys], dim=-1)
        )  # (B, H, T, head), (B, KV, T, head) twice
        group = shape.num_heads // shape.num_kv_heads
        k, v = (_repeat_heads(part, group) for part in (self._rotate(k), v))
        out = F.scaled_dot_product_attention(self._rotate(q), k, v, attn_mask=mask, is_causal=mask is None)
        out = out.transpose(1, 2).reshape(batch * time, queries)
        projected = F.linear(out, block.attn_output, block.attn_output_bias)
        if lora:
            projected = projected + self._low_rank(out, lora["attn_output"])
        return residual + projected

    def _attention_lora(self, index: int) -> dict[str, LoRA] | None:
        if self.adapters is None or not self.adapters.attention:
            return None
        # The shared attention update belongs to the generalist: it is off where the generalist is.
        return self.adapters.attention[index] if self.only is None or 0 in self.only else None

    def _low_rank(self, x: Tensor, lora: LoRA) -> Tensor:
        assert self.adapters is not None
        return F.linear(F.linear(x, lora.a), lora.b) * self.adapters.layout.scale

    def _rotate(self, x: Tensor) -> Tensor:  # (B, H, T, head)
        """Rotary embedding of interleaved pairs: GGUF files of the llama architecture store q and k for it."""
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


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and one number a token; torch's own keeps three tensors of the input's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors  # (N, D), (D,), (N, 1)
        return rms_norm_backward(grad, x, weight, inverse), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:  # (N, D), (D,) -> (N, D)
    """x / sqrt(mean(x^2) + eps) * weight, the weight being frozen."""
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


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
