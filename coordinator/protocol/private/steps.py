"""A device's steps of a window, as functions of a seed of 32 bytes that it keeps as long as the window is on its way.

Everything secret is derived from the seed, so a step that is done again, after a crash, gives the very same bytes. What must not
be done twice with other values (masking, confirming, answering) is for the caller to write down first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from coordinator.protocol import keys
from coordinator.protocol.messages import encode
from coordinator.protocol.private import masks, sharing
from coordinator.protocol.private.cohort import Cohort, Distrust, is_signed, sign
from coordinator.protocol.private.masks import Ring, Stream
from coordinator.protocol.private.messages import Answer, Confirmation, Confirmed, Keys, Share, Shares, SignedKeys

SEED, SHARE = 32, 33  # bytes
NONCE = bytes(12)  # each key encrypts one message only


class Secrets(NamedTuple):
    """Of one device for one window."""

    box: X25519PrivateKey
    mask: X25519PrivateKey
    own: bytes  # the seed of its own mask


def derive(secret: bytes, *words: str, length: int = 32) -> bytes:
    """HKDF-SHA256 of a secret, for the purpose that the words name."""
    return HKDF(hashes.SHA256(), length, None, "|".join(("comigs-edge private window", *words)).encode()).derive(secret)


def secrets_of(seed: bytes, window: str) -> Secrets:
    """What a device keeps to itself."""
    box, mask, own = (derive(seed, window, word) for word in ("box", "mask", "own"))
    return Secrets(X25519PrivateKey.from_private_bytes(box), X25519PrivateKey.from_private_bytes(mask), own)


def make_keys(seed: bytes, window: str, identity: Ed25519PrivateKey) -> SignedKeys:
    """Step 1: what everybody may know."""
    held = secrets_of(seed, window)
    box, mask = (keys.to_text(each.public_key().public_bytes_raw()) for each in (held.box, held.mask))
    made = Keys(
        window=window, public_key=keys.public_text(identity), box_key=box, mask_key=mask,
        commitment=hashlib.sha256(held.own).hexdigest(),
    )  # fmt: skip
    data, signature = sign(identity, made)
    return SignedKeys(keys=data, signature=signature)


def make_shares(seed: bytes, cohort: Cohort, device: str) -> Shares:
    """Step 2: for every other device a box with its two shares."""
    own, key = _split(seed, cohort)
    boxes = {
        other: _box(seed, cohort, device, other, device).encrypt(NONCE, own[at] + key[at], None)
        for at, other in enumerate(cohort.devices) if other != device
    }  # fmt: skip
    return Shares(boxes={other: keys.to_text(box) for other, box in boxes.items()})


def _split(seed: bytes, cohort: Cohort) -> tuple[list[bytes], list[bytes]]:
    """The shares of a device's own mask's seed and of its mask key, for each place."""
    held, window = secrets_of(seed, cohort.terms.window), cohort.terms.window
    made = []
    for word, secret in (("own", held.own), ("key", held.mask.private_bytes_raw())):
        random = [
            int.from_bytes(derive(seed, window, cohort.context, word, str(at), length=48), "big") % sharing.PRIME
            for at in range(1, cohort.threshold)
        ]
        shares = sharing.split([int.from_bytes(secret, "big"), *random], len(cohort.devices))
        made.append([share.to_bytes(SHARE, "big") for share in shares])
    return made[0], made[1]


def _box(seed: bytes, cohort: Cohort, device: str, other: str, sender: str) -> ChaCha20Poly1305:
    """The cipher for what `sender`, one of the two, encrypts for the other."""
    public = X25519PublicKey.from_public_bytes(keys.to_bytes(cohort.devices[other].box_key))
    agreed = secrets_of(seed, cohort.terms.window).box.exchange(public)
    receiver = other if sender == device else device
    return ChaCha20Poly1305(derive(agreed, cohort.context, "box", sender, receiver))


def pair_stream(key: X25519PrivateKey, cohort: Cohort, shared: Sequence[str], head: str, of: str, other: str) -> Stream:
    """The mask that two devices have in common: the one with the lower id adds it, the other subtracts it.

    It is one mask only for devices that agree on terms, keys, U2 and generalist.
    """
    public = X25519PublicKey.from_public_bytes(keys.to_bytes(cohort.devices[other].mask_key))
    agreed = derive(key.exchange(public), cohort.context, "mask", " ".join(sorted(shared)), head, min(of, other), max(of, other))
    return Stream(agreed, of < other)


def own_stream(own: bytes, cohort: Cohort, is_added: bool) -> Stream:
    """The mask that a device has for itself, which hides a masked update that comes late."""
    return Stream(derive(own, cohort.context, "own mask"), is_added)


def mask(numbers: Ring, seed: bytes, cohort: Cohort, device: str, shared: Sequence[str], head: str) -> None:
    """Step 3: hides an update, in place; `head` is the hash of the manifest of the generalist that all have taken note of."""
    held = secrets_of(seed, cohort.terms.window)
    streams = [pair_stream(held.mask, cohort, shared, head, device, other) for other in shared if other != device]
    masks.apply(numbers, [own_stream(held.own, cohort, True), *streams])


def confirmed(cohort: Cohort, shared: Sequence[str], senders: Sequence[str], head: str) -> Confirmed:
    """Step 4: what is signed."""
    return Confirmed(context=cohort.context, head=head, shared=sorted(shared), senders=sorted(senders))


def confirm(what: Confirmed, identity: Ed25519PrivateKey) -> Confirmation:
    """Its signature."""
    return Confirmation(signature=sign(identity, what)[1])


def answer(
    seed: bytes, cohort: Cohort, device: str, what: Confirmed, boxes: dict[str, str], confirmations: dict[str, str]
) -> Answer:
    """Step 5: the shares that open this one sum; raises `Distrust` unless enough of its senders confirm the very same.

    A box that cannot be opened is left out: its sender alone spoiled it.
    """
    data = encode(what)
    agreed = [
        each for each in what.senders
        if is_signed(cohort.devices[each].public_key, Confirmed, data, confirmations.get(each, ""))
    ]  # fmt: skip
    if len(agreed) < cohort.threshold:
        raise Distrust(f"{len(agreed)} devices confirm it and {cohort.threshold} are needed")
    made = Answer(own={}, keys={})
    for other in what.shared:
        if (shares := _opened(seed, cohort, device, other, boxes)) is not None:
            own, key = shares[:SHARE].hex(), shares[SHARE:].hex()
            (made.own if other in what.senders else made.keys)[other] = own if other in what.senders else key
    return made


def _opened(seed: bytes, cohort: Cohort, device: str, other: str, boxes: dict[str, str]) -> bytes | None:
    if other == device:
        own, key = _split(seed, cohort)
        return own[cohort.place(device) - 1] + key[cohort.place(device) - 1]
    try:
        return _box(seed, cohort, device, other, other).decrypt(NONCE, keys.to_bytes(boxes[other]), None)
    except (InvalidTag, KeyError, ValueError):
        return None


def read_share(text: Share) -> int:
    """A share as a number."""
    return int(text, 16)
