"""The mixture of experts in place of a block's MLP (CoMiGS, Fan et al. 2025, arXiv:2409.13931): routing and its loss.

A linear router chooses k experts for each token and the weights are the softmax over the chosen logits, which is
llama.cpp's rule for the llama and granitemoe architectures. What an expert computes is in `lora_mixture.py`,
`merged_mlp.py` and `parallel.py`.

Shapes: N tokens, D width, F hidden width of the MLP, E experts, a zero expert being the last of them, K experts per token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Routing(NamedTuple):
    """What the router decided."""

    weights: Tensor  # (N, E), rows sum to 1, zero where an expert is not chosen
    probabilities: Tensor  # (N, E), softmax over all experts


def route(logits: Tensor, k: int) -> Routing:  # (N, E)
    """Weights of the k experts with the largest logits, for each token."""
    probabilities = F.softmax(logits, dim=-1)
    if k == logits.shape[1]:
        return Routing(probabilities, probabilities)
    top, chosen = logits.topk(k, dim=-1)  # (N, K), (N, K)
    weights = torch.zeros_like(logits).scatter(1, chosen, F.softmax(top, dim=-1))
    return Routing(weights, probabilities)


def balance_loss(routing: Routing) -> Tensor:
    """The paper's generalist-favouring load-balance loss (eq. 10) of one block; a scalar.

    (f_0 P_0 + (E - 1) sum_j f_j P_j) / ((E - 1)^2 + 1), f = share of tokens that chose an expert, P = its mean
    probability. It is constant where every token chooses every expert and E = 2, so it teaches nothing there.
    """
    others = routing.weights.shape[1] - 1
    share = (routing.weights > 0).float().mean(0)  # (E,)
    products = share * routing.probabilities.mean(0)
    return (products[0] + others * products[1:].sum()) / (others**2 + 1)
