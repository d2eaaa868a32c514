"""How well a model predicts unseen text: bits per byte (tokenisers and languages differ), with perplexity beside it.

A document is measured in windows of `context` tokens, each starting with the last token of the one before, so that
every token but a document's first is predicted once. Of a chat only the assistant's messages count, with their end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from comigs_edge import llamacpp
from comigs_edge.data.tokenizer import Encoded, Tokenizer
from comigs_edge.errors import ComigsError
from comigs_edge.nn.loss import next_token_loss
from comigs_edge.nn.model import Model
from comigs_edge.progress import Advance

TOKENS_TOGETHER = 4096  # on a GPU, which short windows one by one would leave idle


class Window(NamedTuple):
    """Tokens that are read together; `scored[i]` tells whether token i + 1 counts when it is predicted."""

    ids: list[int]
    scored: list[bool]


@dataclass(frozen=True)
class TestText:
    """What is measured: the windows, how many tokens count in them, and the bytes that those stand for."""

    windows: list[Window]
    num_tokens: int
    num_bytes: int
    documents: tuple[int, ...] = ()  # the number of each window's document


@dataclass(frozen=True)
class Score:
    """The result for one model."""

    nats: float  # summed over all tokens that count
    num_tokens: int
    num_bytes: int
    windows: tuple[float, ...] = ()  # nats of each window, in their order

    @property
    def bits_per_byte(self) -> float:
        """Bits that a code by this model needs for a byte of the text."""
        return self.nats / math.log(2) / self.num_bytes

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of a token."""
        return math.exp(self.nats / self.num_tokens)


def prepare(encoded: list[Encoded], tokenizer: Tokenizer, context: int, max_tokens: int) -> TestText:
    """Windows of the documents, in their order; one that would go past `max_tokens` in all ends its document, not the text."""
    windows: list[Window] = []
    documents: list[int] = []
    total = 0
    for number, document in enumerate(encoded):
        for window in _windows(document, context):
            if total and total + len(window.ids) > max_tokens:
                break
            windows.append(window)
            documents.append(number)
            total += len(window.ids)
    counted = [token for w in windows for token, scored in zip(w.ids[1:], w.scored, strict=True) if scored]
    if not counted:
        raise ComigsError("the test text has no token to measure; add more with: comigs-edge data add PATH")
    return TestText(windows, len(counted), max(1, sum(map(tokenizer.written_bytes, counted))), tuple(documents))


def _windows(document: Encoded, context: int) -> Iterator[Window]:
    for start in range(0, max(1, len(document.ids) - 1), context):
        ids = document.ids[start : start + context + 1]
        scored = document.scored[start + 1 : start + context + 1]
        if any(scored):
            yield Window(ids, scored)


def in_torch(model: Model, text: TestText, advance: Advance = lambda tokens: None) -> Score:
    """Measures the torch model."""
    device, windows = model.base.device, text.windows
    nats: list[Tensor] = [torch.empty(0)] * len(windows)
    with torch.no_grad():
        for group in groups(windows, TOKENS_TOGETHER if device.type == "cuda" else 1):
            longest = max(len(windows[index].ids) for index in group) - 1
            # Nothing looks ahead, so what stands behind a window does not change it.
            ids = [windows[index].ids[:-1] + [0] * (longest + 1 - len(windows[index].ids)) for index in group]
            hidden = model(torch.tensor(ids, device=device)).hidden.view(len(group), longest, -1)
            for index, rows in zip(group, hidden, strict=True):
                targets = torch.tensor(windows[index].ids[1:], device=device)
                nats[index] = next_token_loss(model.base, rows[: len(targets)], targets, torch.tensor(windows[index].scored))
                advance(len(windows[index].ids))
    by_window = tuple(torch.stack(nats).tolist())
    return Score(sum(by_window), text.num_tokens, text.num_bytes, by_window)


def groups(windows: list[Window], tokens: int) -> Iterator[list[int]]:
    """Indices of windows that are read together, the longest first: about `tokens` tokens each, and one at least."""
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index].ids))
    while order:
        count = max(1, tokens // len(windows[order[0]].ids))
        yield order[:count]
        order = order[count:]


def in_llama_cpp(
    path: Path, text: TestText, threads: int, advance: Advance = lambda tokens: None, adapters: tuple[Path, ...] = (),
    gpu_layers: int = 0,
) -> Score:  # fmt: skip
    """Measures the GGUF file at `path`, with these LoRA files, in llama.cpp."""
    longest = max(len(window.ids) for window in text.windows)
    llama = llamacpp.load(
        path, n_ctx=longest, n_batch=longest, n_ubatch=min(longest, 512), logits_all=True, n_threads=threads,
        n_threads_batch=threads, **llamacpp.gpu_options(gpu_layers),
    )  # fmt: skip
    if adapters:
        llamacpp.LoadedAdapters(llama).use(adapters)
    nats = 0.0
    for window in text.windows:
        llama.reset()
        llama.eval(window.ids[:-1])
        rows = np.flatnonzero(window.scored)
        logits = torch.from_numpy(llama.scores[rows])  # (M, V)
        targets = torch.tensor(window.ids[1:])[torch.from_numpy(rows)]
        nats += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        advance(len(window.ids))
    llama.close()
    return Score(nats, text.num_tokens, text.num_bytes)
