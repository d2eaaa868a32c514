"""Which expert speaks: what the routers of a personal model decide for every token of a text (CoMiGS, figure 3).

Shapes: T tokens, B blocks with a router, E choices: the experts, the generalist first, and at the end a zero expert if there is
one.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comigs_edge.data.tokenizer import Encoded
from comigs_edge.errors import ComigsError
from comigs_edge.nn.experts import ExpertsConfig, roles
from comigs_edge.nn.model import Model
from comigs_edge.nn.routing import Routing
from comigs_edge.progress import Advance

ZERO = "base alone"  # what is heard where the zero expert speaks


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The weights of the experts for each token."""

    experts: tuple[str, ...]  # E names
    blocks: tuple[int, ...]  # B numbers
    tokens: list[int]  # T ids
    texts: list[str]  # of the tokens; of a character in several tokens all but the last are empty
    documents: list[int]  # number of each token's document
    weights: NDArray[np.float64]  # (T, B, E), rows sum to 1

    @property
    def shown(self) -> list[int]:
        """Places in `blocks` of the first, the middle and the last one."""
        return sorted({0, len(self.blocks) // 2, len(self.blocks) - 1})

    def speakers(self, place: int) -> list[int]:
        """The expert with the largest weight, for each token, in the block at this place."""
        return [int(each) for each in self.weights[:, place].argmax(-1)]

    def shares(self) -> NDArray[np.float64]:
        """Mean weights (B, E) of all tokens."""
        return np.asarray(self.weights.mean(0))


def names(layout: ExpertsConfig) -> tuple[str, ...]:
    """Of what a router chooses from, in its order."""
    experts = [role.replace(".", " ") for role in roles(layout)]
    return (*experts, ZERO) if layout.zero_expert else tuple(experts)


def check_choice(layout: ExpertsConfig) -> None:
    """Raises `ComigsError` where there is no choice."""
    if layout.num_choices == 1:
        raise ComigsError(
            "your model has one expert, the generalist, which speaks for every token: there is nothing to explain; "
            "train one with a specialist: comigs-edge train --fresh --plan specialists=1"
        )


def cut(encoded: Iterable[Encoded], most: int) -> tuple[list[list[int]], bool]:
    """The ids of the documents, `most` tokens in all, and whether there is more; what comes later is not even encoded."""
    documents, left = [], most
    for ids in (document.ids for document in encoded if document.ids):
        if left:
            documents.append(ids[:left])
        if len(ids) > left:
            return documents, True
        left -= len(ids)
    return documents, False


def explain(
    model: Model, documents: Sequence[Sequence[int]], pieces: Sequence[bytes], advance: Advance = lambda tokens: None
) -> Explanation:
    """Passes each document through the model; `pieces` are the bytes of their tokens, one after the other.

    Raises `ComigsError` for a model that has no router.
    """
    assert model.adapters is not None
    check_choice(model.adapters.layout)
    weights: dict[int, list[Tensor]] = {}

    def watch(block: int, normed: Tensor, routing: Routing | None) -> None:
        if routing is not None:
            weights.setdefault(block, []).append(routing.weights.double().cpu())

    model.watch = watch
    try:
        with torch.no_grad():
            for ids in documents:
                model(torch.tensor([ids], device=model.base.device))
                advance(len(ids))
    finally:
        model.watch = None
    return Explanation(
        experts=names(model.adapters.layout), blocks=tuple(sorted(weights)), tokens=[token for ids in documents for token in ids],
        texts=decode(pieces), documents=[number for number, ids in enumerate(documents) for _ in ids],
        weights=torch.stack([torch.cat(weights[block]) for block in sorted(weights)], dim=1).numpy(),
    )  # fmt: skip


def decode(pieces: Sequence[bytes]) -> list[str]:
    """The text of each token: a character that several tokens make up stands with the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(piece, final=number == len(pieces)) for number, piece in enumerate(pieces, 1)]
