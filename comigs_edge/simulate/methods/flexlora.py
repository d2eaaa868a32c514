"""FlexLoRA (Bai et al. 2024, arXiv:2402.11505): full-size products BA are averaged, and cut to each device's rank by SVD.

Every device gets the best approximation of the mean product that its rank allows, as B = U sqrt(S), A = sqrt(S) V'. The
released code of the CoMiGS paper does something else: its server keeps sums in tensors of A's and B's shape, into which no
full-size product fits, so it starts anew for every device and only the last one's share is left; and it scales products by
alpha / R where the forward pass has alpha / sqrt(R). Here the scale is the same on every device (`ranks.match_parameters`), so it
drops out of the mean. The SVD turns A and B, so AdamW's moments, which are of the tensors before, begin anew with every round (as
in FederatedScope, on which the paper's code is built).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from comigs_edge.simulate.methods.method import Method, Round, all_experts
from comigs_edge.simulate.methods.ranks import Floats, match_parameters, pairs
from coordinator.protocol.wire import Arrays

Doubles = npt.NDArray[np.float64]
Floating = npt.NDArray[np.floating[Any]]


def mean_product_svd(parts: list[tuple[Floats, Floats]], weights: list[int]) -> tuple[Doubles, Doubles, Doubles]:
    """U (out, K), S (K,), V' (K, in) of sum_i w_i B_i A_i / sum_i w_i; K = sum of ranks.

    The factors stand side by side and their QR decompositions make the problem K x K: nothing of full size is formed.
    """
    share = np.array(weights, np.float64) / sum(weights)
    left = np.concatenate([b * w for (_, b), w in zip(parts, share, strict=True)], axis=1)
    return product_svd(left, np.concatenate([a for a, _ in parts]))


def product_svd(left: Floating, right: Floating) -> tuple[Doubles, Doubles, Doubles]:
    """U (out, K), S (K,), V' (K, in) of left (out, K) times right (K, in)."""
    q_left, r_left = np.linalg.qr(left.astype(np.float64))
    q_right, r_right = np.linalg.qr(right.T.astype(np.float64))
    u, s, vt = np.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return q_left @ u, s, vt @ q_right.T


def exchange(state: Round) -> list[Arrays]:
    """The mean product of every matrix, cut to each device's rank."""
    after = state.after()
    results: list[Arrays] = [{} for _ in after]
    for name_a, name_b in pairs(after[0]):
        u, s, vt = mean_product_svd([(arrays[name_a], arrays[name_b]) for arrays in after], state.weights)
        root = np.sqrt(s)
        for own, result in zip(state.before, results, strict=True):
            rank = min(len(own[name_a]), len(s))
            a, b = np.zeros_like(own[name_a]), np.zeros_like(own[name_b])
            a[:rank], b[:, :rank] = root[:rank, None] * vt[:rank], u[:, :rank] * root[:rank]
            result[name_a], result[name_b] = a, b
    return results


METHODS = (
    Method(
        "flexlora",
        "mean of full-size products, cut to each rank by SVD",
        match_parameters,
        all_experts,
        exchange,
        lora_only=True,
        resets_moments=lambda number, rounds: True,
    ),
)
