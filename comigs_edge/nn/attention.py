"""Self-attention of a block, with rotary embedding, grouped queries and the shared low-rank update.

Shapes: B batch, T time, N = B*T tokens, D width, H heads, KV heads of keys and values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from comigs_edge.base.hparams import HParams
from comigs_edge.nn.lora import LoRA, merge
from comigs_edge.nn.norm import rms_norm
from comigs_edge.nn.short_attention import attend
from comigs_edge.nn.tensors import Buffers, to_device
from comigs_edge.nn.weights import Block
from profiles.cost import SHORT_ROWS
from quantize.fake import straight_through


@dataclass(frozen=True)
class Window:
    """What the tokens of a pass may look at, and where they stand."""

    size: tuple[int, int]  # B, T
    mask: Tensor | None  # (B, 1, T, T), zero or minus infinity; None: every earlier token, and itself
    turns: Tensor  # (T, 1, rope_width / 2) complex: the rotation of each pair

    @property
    def allowed(self) -> Tensor:
        """The mask, also where every earlier token may be looked at; zero or minus infinity."""
        if self.mask is not None:
            return self.mask
        time = self.size[1]
        return torch.full((time, time), float("-inf"), device=self.turns.device).triu_(1)

    def pieces(self, tokens: int) -> list[Window]:
        """The same for a few rows of the batch at a time, with about as many tokens in all."""
        batch, time = self.size
        rows = [min(max(1, tokens // time), batch - start) for start in range(0, batch, max(1, tokens // time))]
        masks = [None] * len(rows) if self.mask is None else torch.split(self.mask, rows)
        return [Window((count, time), mask, self.turns) for count, mask in zip(rows, masks, strict=True)]


@dataclass(frozen=True)
class Update:
    """The low-rank updates of an attention; in `block_format` if that is named, as the merged file holds it."""

    parts: dict[str, LoRA]
    scale: float
    block_format: str | None


def window(tokens: Tensor, documents: Tensor | None, turns: Tensor) -> Window:
    """For `tokens` (B, T); `documents` (B, T) numbers the document of each token: attention stays inside it.

    `documents` may be on the processor where the tokens are not: then nothing waits for the GPU. On a GPU nobody looks at them,
    and there is always a mask.
    """
    time = tokens.shape[1]
    mask = None
    if documents is not None and (documents.is_cuda or bool((documents != documents[:, :1]).any())):
        allowed = (documents[:, :, None] == documents[:, None, :]).tril_()[:, None]  # (B, 1, T, T)
        mask = torch.zeros(allowed.shape, device=documents.device).masked_fill_(~allowed, float("-inf"))
        mask = to_device(mask, tokens.device)
    return Window((tokens.shape[0], time), mask, turns[:time])


def attention(
    normed: Tensor, block: Block, hparams: HParams, where: Window, update: Update | None, buffers: Buffers
) -> Tensor:  # (N, D) -> (N, D)
    """What the tokens of `where` give each other; `normed` is the normed residual stream."""
    batch, time = where.size
    queries, keys = hparams.num_heads * hparams.head_width, hparams.num_kv_heads * hparams.head_width
    widths = {"attn_q": queries, "attn_k": keys, "attn_v": keys}
    qkv = _linear(normed, block.attn_qkv, block.attn_qkv_bias, update, widths)  # (N, Q + 2 KV)
    qk, v = torch.split(
        qkv.view(batch, time, -1, hparams.head_width), [hparams.num_heads + hparams.num_kv_heads, hparams.num_kv_heads], 2
    )
    if block.attn_q_norm is not None and block.attn_k_norm is not None:
        q, k = torch.split(qk, [hparams.num_heads, hparams.num_kv_heads], 2)
        eps = hparams.norm_eps
        qk = torch.cat((rms_norm(q.float(), block.attn_q_norm, eps), rms_norm(k.float(), block.attn_k_norm, eps)), 2)
    # Always in float32: torch's kernel takes three times as long in bfloat16.
    qk, v = rotate(qk.float(), where.turns, hparams.rope_width), v.float()
    if time <= SHORT_ROWS and not qk.is_cuda:
        out = attend(qk, v, hparams.num_heads, where.allowed, buffers)
    else:
        kind = qkv.dtype if qk.is_cuda else torch.float32  # on a GPU the fused kernel wants bfloat16
        mask = None if where.mask is None else where.mask.to(kind)
        out = _long_rows(qk.to(kind), v.to(kind), hparams.num_heads, mask)
    out = out.reshape(batch * time, queries).to(qkv.dtype)
    return _linear(out, block.attn_output, block.attn_output_bias, update, {"attn_output": hparams.width})


def _long_rows(qk: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """(B, T, H + KV, head), (B, T, KV, head) -> (B, T, H, head), by torch's fused kernel."""
    q, k = torch.split(qk.transpose(1, 2), [heads, v.shape[2]], 1)  # (B, H, T, head), (B, KV, T, head)
    group = heads // v.shape[2]
    k, v = (x[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (k, v.transpose(1, 2)))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None).transpose(1, 2)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, update: Update | None, widths: dict[str, int]) -> Tensor:
    """x times a matrix of several, one below the other with `widths` rows each, with their low-rank updates."""
    bias = None if bias is None else bias.to(x.dtype)
    if update is None:
        return F.linear(x, weight, bias)
    if update.block_format is None:
        pairs = [(update.parts[name].a.to(x.dtype), update.parts[name].b.to(x.dtype)) for name in widths]
        low = torch.cat([F.linear(F.linear(x, a), b) for a, b in pairs], dim=-1)
        return F.linear(x, weight, bias) + low * update.scale
    merged = [
        straight_through(merge(part.float(), update.parts[name], update.scale), update.block_format)
        for part, name in zip(torch.split(weight, list(widths.values())), widths, strict=True)
    ]
    return F.linear(x, torch.cat(merged).to(x.dtype), bias)


def rotate(x: Tensor, turns: Tensor, width: int) -> Tensor:  # (B, T, heads, head)
    """Rotary embedding of interleaved pairs, for which `weights.py` orders the rows of q and k: a product of complex numbers."""
    pairs = torch.view_as_complex(x[..., :width].view(*x.shape[:-1], -1, 2))
    turned = torch.view_as_real(pairs * turns).flatten(-2)
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), dim=-1)


def rope_tables(hparams: HParams, factors: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation, each (length, rope_width / 2), as llama.cpp computes them.

    The angle of position p and pair j is p * rope_scale * base^(-2j / rope_width) / factor_j.
    """
    pairs = torch.arange(0, hparams.rope_width, 2, dtype=torch.float64)
    frequencies = torch.exp(pairs * (-math.log(hparams.rope_base) / hparams.rope_width)) * hparams.rope_scale
    if factors is not None:
        frequencies = frequencies / factors.double()
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()
