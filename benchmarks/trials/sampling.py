"""The base writes: samples for ordinary text, and greedy answers, many rows at once, with cached keys and values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from comigs_edge.data.tokenizer import Encoded
from comigs_edge.nn.attention import _rotate
from comigs_edge.nn.merged_mlp import frozen_mlp
from comigs_edge.nn.mlp import Frozen, Pass
from comigs_edge.nn.model import Model
from comigs_edge.nn.norm import rms_norm
from comigs_edge.nn.weights import Base

LENGTH = 128  # tokens of a sample, with its prompt


class _Writer:
    """Reads one token of every row at a time. Shapes: B rows, H heads, KV heads of keys and values, G = H / KV."""

    def __init__(self, base: Base, rows: int, length: int) -> None:
        self.base, self.hparams, self.model = base, base.hparams, Model(base, None)
        shape = (base.hparams.num_blocks, 2, rows, base.hparams.num_kv_heads, length, base.hparams.head_width)
        self.cache = torch.empty(shape, device=base.device)
        self.turns = self.model._rotation(length)

    def __call__(self, tokens: Tensor, place: int) -> Tensor:  # (B,) -> (B, V)
        """Logits of the token behind that at `place`."""
        x, eps = self.base.embed(tokens), self.hparams.norm_eps
        for number in range(self.hparams.num_blocks):
            block = self.base.block(number)
            if block.attn_q_norm is not None:
                raise SystemExit("bases with norms of heads cannot write yet")
            qkv = F.linear(rms_norm(x, block.attn_norm, eps, self.base.dtype), block.attn_qkv, block.attn_qkv_bias)
            seen = self._attend(number, qkv.float(), place).to(self.base.dtype)
            x = x + F.linear(seen, block.attn_output, block.attn_output_bias)
            mlp = Frozen(block.ffn_gate_up, block.ffn_down)
            x = x + frozen_mlp(rms_norm(x, block.ffn_norm, eps, self.base.dtype), mlp, Pass(self.base.buffers))
        return self.model.logits(rms_norm(x, self.base.output_norm, eps))

    def _attend(self, number: int, qkv: Tensor, place: int) -> Tensor:
        heads, kv, width = self.hparams.num_heads, self.hparams.num_kv_heads, self.hparams.head_width
        qk, v = torch.split(qkv.view(len(qkv), 1, -1, width), [heads + kv, kv], 2)
        q, k = torch.split(_rotate(qk, self.turns[place : place + 1], self.hparams.rope_width), [heads, kv], 2)
        self.cache[number, 0, :, :, place], self.cache[number, 1, :, :, place] = k[:, 0], v[:, 0]
        keys, values = self.cache[number, :, :, :, : place + 1]  # (B, KV, T, width)
        scores = (q.view(len(q), kv, -1, width) * width**-0.5) @ keys.transpose(2, 3)  # (B, KV, G, T)
        return (scores.softmax(-1) @ values).flatten(1)


@torch.no_grad()
def write(
    base: Base, prompts: list[list[int]], length: int, temperature: float, ends: list[int], seed: int = 0
) -> list[list[int]]:
    """Each prompt and what the base writes after it, to an end (left in) or `length` tokens in all; greedy at temperature 0."""
    given = torch.full((len(prompts), length), -1)
    for row, prompt in enumerate(prompts):
        given[row, : len(prompt)] = torch.tensor(prompt[:length])
    given = given.to(base.device)
    generator = torch.Generator(base.device).manual_seed(seed)
    tokens, writer = given.clone(), _Writer(base, len(prompts), length)
    for place in range(length - 1):
        logits = writer(tokens[:, place], place)
        if temperature:
            drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(1)
        else:
            drawn = logits.argmax(-1)
        tokens[:, place + 1] = torch.where(given[:, place + 1] < 0, drawn, given[:, place + 1])
    return [_cut(row, len(prompt), ends) for row, prompt in zip(tokens.tolist(), prompts, strict=True)]


def _cut(row: list[int], start: int, ends: list[int]) -> list[int]:
    stop = next((place + 1 for place in range(start, len(row)) if row[place] in ends), len(row))
    return row[:stop]


def samples(base: Base, source: str, table: dict[str, Any], tokens: int, rows: int) -> list[Encoded]:
    """Some `tokens` of ordinary text at temperature 1: from the start token, from first words, or answers to instructions."""
    prompts = {"start": table["starts"], "words": table["first_words"], "chat": table["rehearsed"]}[source]
    turn: Iterator[list[int]] = itertools.cycle(prompts[::7] + prompts if source == "chat" else prompts)
    made: list[Encoded] = []
    for seed in itertools.count():
        chosen = [next(turn) for _ in range(rows)]
        for prompt, ids in zip(chosen, write(base, chosen, LENGTH, 1.0, table["ends"], seed), strict=True):
            made.append(Encoded(ids, [place >= len(prompt) for place in range(len(ids))]))
        if sum(len(each.ids) for each in made) >= tokens:
            return made
    raise AssertionError
