"""The coordinator's end of a window: enough answers give the masks that are left, and the sum stands without them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from coordinator.protocol import keys
from coordinator.protocol.private import masks, sharing, steps
from coordinator.protocol.private.cohort import Cohort
from coordinator.protocol.private.masks import Ring
from coordinator.protocol.private.messages import Answer, Confirmed

TRIES = 20  # sets of answers, where a share is not what it must be
_weights = lru_cache(maxsize=256)(sharing.weights)


class Unopened(Exception):
    """The answers do not open the sum; more of them may."""


def open_sum(cohort: Cohort, what: Confirmed, answers: Mapping[str, Answer], updates: Iterable[Ring]) -> Ring:
    """The sum modulo 2^32 of the updates of `what.senders`; `updates` are these, masked. Raises `Unopened`.

    Whatever is combined is compared with what its device said when the window began, so a wrong share is no wrong sum.
    """
    streams = []
    for device in what.shared:
        if device in what.senders:
            shares = {each: given.own[device] for each, given in answers.items() if device in given.own}
            own = _combine(cohort, shares, _commitment, cohort.devices[device].commitment)
            streams.append(steps.own_stream(own, cohort, False))
        else:
            shares = {each: given.keys[device] for each, given in answers.items() if device in given.keys}
            secret = _combine(cohort, shares, _public, cohort.devices[device].mask_key)
            key = X25519PrivateKey.from_private_bytes(secret)
            # It would have masked with the others what it never sent: so theirs are left over, with the other sign.
            streams += [steps.pair_stream(key, cohort, what.shared, what.head, device, other) for other in what.senders]
    total = np.zeros(cohort.terms.numbers, np.uint32)
    for update in updates:
        total += update
    masks.apply(total, streams)
    return total


def _public(secret: bytes) -> str:
    return keys.to_text(X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())


def _commitment(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def _combine(cohort: Cohort, shares: Mapping[str, str], shown: Callable[[bytes], str], wanted: str) -> bytes:
    """The secret of which its device has shown this, by some set of as many shares as are needed."""
    known, drawn = sorted(shares), random.Random(0)
    for attempt in range(TRIES if len(known) >= cohort.threshold else 0):
        chosen = sorted(drawn.sample(known, cohort.threshold)) if attempt else known[: cohort.threshold]
        secret = sharing.combine([steps.read_share(shares[each]) for each in chosen], _weights(_places(cohort, chosen)))
        if secret < 1 << 256 and shown(data := secret.to_bytes(32, "big")) == wanted:
            return data
    raise Unopened(f"of {len(shares)} shares, no {cohort.threshold} fit together")


def _places(cohort: Cohort, devices: Sequence[str]) -> tuple[int, ...]:
    return tuple(cohort.place(each) for each in devices)
