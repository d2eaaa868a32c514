"""A second, slow implementation of a private window, in Python's integers, HMAC and lists: what the fast one is compared with."""

from __future__ import annotations

import hashlib
import hmac
from fractions import Fraction

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

PRIME = (1 << 256) + 297


def hkdf(secret, *words):
    """RFC 5869, one block."""
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    info = "|".join(["comigs-edge private window", *words]).encode()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def interpolate(points):
    """The value at zero of the polynomial through the points, modulo `PRIME`, by rational numbers."""
    total = 0
    for place, value in points:
        factor = Fraction(1)
        for other, _ in points:
            if other != place:
                factor *= Fraction(-other, place - other)
        total += value * factor.numerator * pow(factor.denominator, PRIME - 2, PRIME)
    return total % PRIME


def stream(key, count):
    text = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(4 * count))
    return [int.from_bytes(text[at : at + 4], "little") for at in range(0, len(text), 4)]


def masked(numbers, own_key, pair_keys, device):
    """`pair_keys`: other device -> key."""
    sums = [number + each for number, each in zip(numbers, stream(own_key, len(numbers)), strict=True)]
    for other, key in pair_keys.items():
        sign = 1 if device < other else -1
        sums = [number + sign * each for number, each in zip(sums, stream(key, len(numbers)), strict=True)]
    return [number % (1 << 32) for number in sums]


def plain_sum(updates):
    return [sum(numbers) % (1 << 32) for numbers in zip(*updates, strict=True)]
