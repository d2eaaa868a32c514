"""Who takes part in a window, as a device checks it: all that is signed, and how many are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from coordinator.protocol import keys
from coordinator.protocol.messages import Message, T, decode, encode
from coordinator.protocol.private.messages import LEAST, MOST, Keys, SignedKeys, SignedTerms, Terms

_PREFIX = b"comigs-edge private window: "  # nothing else that these keys sign begins so


class Distrust(Exception):
    """A window is not what this device may take part in; the text is the end of a sentence."""


def sign(key: Ed25519PrivateKey, message: Message) -> tuple[str, str]:
    """A message's bytes and their signature, both base64url."""
    data = encode(message)
    return keys.to_text(data), keys.to_text(key.sign(_signed(type(message), data)))


def is_signed(public_key: str, kind: type[Message], data: bytes, signature: str) -> bool:
    """Whether this is the signature of a message of this kind."""
    try:
        keys.public_key(public_key).verify(keys.to_bytes(signature), _signed(kind, data))
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed(kind: type[Message], data: bytes) -> bytes:
    return _PREFIX + kind.__name__.encode() + b"\n" + data


def read_message(text: str, kind: type[T]) -> tuple[bytes, T]:
    """The bytes that were signed, and what they say; raises `Distrust`."""
    try:
        return (data := keys.to_bytes(text)), decode(data, kind)
    except (ValueError, msgspec.DecodeError) as error:
        raise Distrust(f"a message in it cannot be read ({error})") from error


def sign_terms(key: Ed25519PrivateKey, terms: Terms) -> SignedTerms:
    """The terms' bytes and their signature."""
    data, signature = sign(key, terms)
    return SignedTerms(terms=data, signature=signature)


def open_terms(signed: SignedTerms, signing_key: str) -> Terms:
    """The terms, if the coordinator signed them; raises `Distrust`."""
    data, terms = read_message(signed.terms, Terms)
    if not is_signed(signing_key, Terms, data, signed.signature):
        raise Distrust("its terms are not signed by the coordinator")
    return terms


def open_keys(signed: SignedKeys, window: str) -> Keys:
    """Keys for this window that their device signed and that can be used; raises `Distrust`."""
    data, made = read_message(signed.keys, Keys)
    if made.window != window or not is_signed(made.public_key, Keys, data, signed.signature):
        raise Distrust("a device's keys are not signed by it for this window")
    try:
        for each in (made.box_key, made.mask_key):  # refuses points of low order
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(keys.to_bytes(each)))
    except ValueError as error:
        raise Distrust("a device's keys cannot be used") from error
    return made


@dataclass(frozen=True)
class Cohort:
    """The devices U1 of a window by their ids; `context` is the SHA-256 of all that they have agreed on."""

    terms: Terms
    devices: dict[str, Keys]
    context: str

    @property
    def threshold(self) -> int:
        """Answers that open the sum: more than two thirds, so that of two different sums one at most can be opened."""
        return threshold(len(self.devices))

    @property
    def needed(self) -> int:
        """Devices that a later step needs."""
        return max(self.threshold, self.terms.least)

    def place(self, device: str) -> int:
        """Where the device's shares are."""
        return list(self.devices).index(device) + 1

    def check_step(self, chosen: Collection[str], among: Collection[str], device: str) -> None:
        """Raises `Distrust` where those `chosen` for a step are not enough, not of the step before, or not with this device."""
        if len(set(chosen)) != len(chosen) or not set(chosen) <= set(among):
            raise Distrust("it names devices that took no part in the step before")
        if device not in chosen:
            raise Distrust("it leaves this device out")
        if len(chosen) < self.needed:
            raise Distrust(f"{len(chosen)} devices are left and {self.needed} are needed")


def threshold(devices: int) -> int:
    """Of so many devices, the answers that open a sum."""
    return 2 * devices // 3 + 1


def read_cohort(signed_terms: SignedTerms, signing_key: str, signed: list[SignedKeys]) -> Cohort:
    """The cohort of these terms and keys; raises `Distrust` where they are too few, too many, or not each one device's."""
    terms = open_terms(signed_terms, signing_key)
    made = {keys.device_id(each.public_key): each for each in (open_keys(each, terms.window) for each in signed)}
    if len(made) != len(signed):
        raise Distrust("a device is in it twice")
    if not max(LEAST, terms.least) <= len(made) <= MOST:
        raise Distrust(f"{len(made)} devices are in it, between {max(LEAST, terms.least)} and {MOST} are needed")
    texts = [signed_terms.terms, *sorted(each.keys for each in signed)]  # the very bytes: a later version may have written more
    return Cohort(terms, dict(sorted(made.items())), hashlib.sha256(" ".join(texts).encode()).hexdigest())
