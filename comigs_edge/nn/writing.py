"""The base writes: many rows at once, a token of each at a time, with cached keys and values.

Shapes: B rows, T time, D width, V vocabulary, H heads, KV heads of keys and values, G = H / KV.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from comigs_edge.nn.attention import rope_tables, rotate
from comigs_edge.nn.merged_mlp import frozen_mlp
from comigs_edge.nn.mlp import Frozen, Pass
from comigs_edge.nn.model import Model
from comigs_edge.nn.norm import rms_norm
from comigs_edge.nn.weights import Base, Block
from comigs_edge.progress import SILENT, Progress

CACHE_BYTES = 128 << 20  # of keys and values; the memory that a training takes is not taken yet
MAX_ROWS = 64


def rows_at_once(base: Base, length: int) -> int:
    """How many rows of `length` tokens are written together."""
    hparams = base.hparams
    one = hparams.num_blocks * 2 * hparams.num_kv_heads * length * hparams.head_width * 2
    return max(1, min(MAX_ROWS, CACHE_BYTES // one))


@torch.no_grad()
def write(
    base: Base, prompts: list[list[int]], length: int, temperature: float, ends: Collection[int], seed: int = 0,
    progress: Progress = SILENT,
) -> list[list[int]]:  # fmt: skip
    """Each prompt and what the base writes after it, to an end (left in) or `length` tokens in all; greedy at temperature 0.

    `progress` gets the tokens of a row.
    """
    given = torch.full((len(prompts), length), -1)
    for row, prompt in enumerate(prompts):
        given[row, : len(prompt)] = torch.tensor(prompt[:length])
    given = given.to(base.device)
    generator = torch.Generator(base.device).manual_seed(seed)
    last = torch.tensor(sorted(ends), device=base.device)
    has_ended = torch.zeros(len(prompts), dtype=torch.bool, device=base.device)
    tokens, reader = given.clone(), _Reader(base, len(prompts), length)
    shortest = min(map(len, prompts))
    for place in range(length - 1):
        progress(place, length)
        hidden = reader(tokens[:, place], place)
        if place + 1 < shortest:
            continue
        logits = reader.model.logits(hidden)
        if temperature:
            drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(1)
        else:
            drawn = logits.argmax(-1)
        is_own = given[:, place + 1] < 0
        tokens[:, place + 1] = torch.where(is_own, drawn, given[:, place + 1])
        has_ended |= is_own & torch.isin(drawn, last)
        if has_ended.all():
            break
    return [_cut(row, len(prompt), ends) for row, prompt in zip(tokens.tolist(), prompts, strict=True)]


def _cut(row: list[int], start: int, ends: Collection[int]) -> list[int]:
    stop = next((place + 1 for place in range(start, len(row)) if row[place] in ends), len(row))
    return row[:stop]


class _Reader:
    """Reads one token of every row at a time; keys and values of those before are kept."""

    def __init__(self, base: Base, rows: int, length: int) -> None:
        hparams = base.hparams
        self.base, self.hparams, self.model = base, hparams, Model(base, None)
        shape = (hparams.num_blocks, 2, rows, hparams.num_kv_heads, length, hparams.head_width)
        self.cache = torch.empty(shape, dtype=torch.float16, device=base.device)
        self.turns = torch.complex(*rope_tables(hparams, base.rope_factors, length))[:, None].to(base.device)

    def __call__(self, tokens: Tensor, place: int) -> Tensor:  # (B,) -> (B, D)
        """The hidden state behind the last norm of the token at `place`."""
        x, eps, kind = self.base.embed(tokens), self.hparams.norm_eps, self.base.dtype
        for number in range(self.hparams.num_blocks):
            block = self.base.block(number)
            x = x + self._attend(number, block, rms_norm(x, block.attn_norm, eps, kind), place)
            mlp = Frozen(block.ffn_gate_up, block.ffn_down)
            x = x + frozen_mlp(rms_norm(x, block.ffn_norm, eps, kind), mlp, Pass(self.base.buffers))
        return rms_norm(x, self.base.output_norm, eps)

    def _attend(self, number: int, block: Block, normed: Tensor, place: int) -> Tensor:  # (B, D) -> (B, D)
        heads, kv, width = self.hparams.num_heads, self.hparams.num_kv_heads, self.hparams.head_width
        qkv = _linear(normed, block.attn_qkv, block.attn_qkv_bias).float().view(len(normed), 1, -1, width)
        q, k, v = torch.split(qkv, [heads, kv, kv], 2)
        if block.attn_q_norm is not None and block.attn_k_norm is not None:
            q, k = (rms_norm(*each, self.hparams.norm_eps) for each in ((q, block.attn_q_norm), (k, block.attn_k_norm)))
        q, k = (rotate(each, self.turns[place : place + 1], self.hparams.rope_width) for each in (q, k))
        self.cache[number, 0, :, :, place], self.cache[number, 1, :, :, place] = k[:, 0], v[:, 0]
        keys, values = self.cache[number, :, :, :, : place + 1].float()  # (B, KV, T, width)
        scores = (q.view(len(q), kv, -1, width) * width**-0.5) @ keys.transpose(2, 3)  # (B, KV, G, T)
        seen = (scores.softmax(-1) @ values).flatten(1).to(normed.dtype)
        return _linear(seen, block.attn_output, block.attn_output_bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
