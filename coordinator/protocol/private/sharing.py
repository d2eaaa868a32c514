"""Shamir's secret sharing over one prime above 2^256: any `threshold` shares give the secret, fewer say nothing of it."""

from __future__ import annotations

from collections.abc import Sequence

PRIME = 2**256 + 297


def split(coefficients: Sequence[int], count: int) -> list[int]:
    """The shares at 1 .. `count` of the secret `coefficients[0]`; the others are random, one less than are needed to open it."""
    shares = []
    for place in range(1, count + 1):
        value = 0
        for each in reversed(coefficients):
            value = (value * place + each) % PRIME
        shares.append(value)
    return shares


def weights(places: Sequence[int]) -> list[int]:
    """What each share counts, for shares at these places: computed once for all the secrets that one set opens."""
    found = []
    for place in places:
        above = below = 1
        for other in places:
            if other != place:
                above, below = above * other % PRIME, below * (other - place) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return found


def combine(shares: Sequence[int], counted: Sequence[int]) -> int:
    """The secret; `counted` are the `weights` of the shares' places."""
    return sum(share * weight for share, weight in zip(shares, counted, strict=True)) % PRIME
