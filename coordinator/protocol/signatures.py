"""Signed requests (RFC 9421, Ed25519, with http-message-signatures): who asks, for exactly what, and only once.

Covered:     method, authority, path, query, the body's digest, the coordinator's epoch; a nonce for each request.
Not covered: the answers. They come through TLS, whose certificate the device has pinned.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, HTTPSignatureKeyResolver, algorithms
from http_message_signatures.exceptions import HTTPMessageSignaturesException

from coordinator.protocol.errors import Refused

EPOCH_HEADER = "Comigs-Epoch"
COVERED = ("@method", "@authority", "@path", "@query", "content-digest", "comigs-epoch")
TAG = "comigs-edge"
WINDOW_SECONDS = 120  # a signature is valid this long
MAX_NONCES = 200_000  # kept at once; beyond that requests are refused for a minute


class Request(NamedTuple):
    """What is signed; `url` is absolute, `headers` has all lines."""

    method: str
    url: str
    headers: Any


class Lookup(HTTPSignatureKeyResolver):
    """Finds the keys of ids, as the library asks for them."""

    def __init__(self, find: Callable[[str], Any]) -> None:
        self._find = find

    def resolve_private_key(self, key_id: str) -> Any:
        """Whose request is signed."""
        return self._find(key_id)

    resolve_public_key = resolve_private_key


def sign(request: Any, key: Ed25519PrivateKey, key_id: str, epoch: str, body: bytes, clock_offset: float = 0.0) -> None:
    """Adds the signature's headers to a request with `method`, `url` and `headers`.

    `clock_offset` is the coordinator's clock less this device's, in seconds.
    """
    request.headers[EPOCH_HEADER] = epoch
    now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=clock_offset)
    HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Lookup(lambda _: key)).sign(
        request, key_id=key_id, created=now, nonce=secrets.token_urlsafe(16), tag=TAG, label="comigs",
        covered_component_ids=COVERED, body=body,
    )  # fmt: skip


def verify(request: Request, find: Callable[[str], Ed25519PublicKey], epoch: str, nonces: Nonces, now: float) -> Verified:
    """Who signed the request; raises `Refused` (401) unless it is sound, fresh and new.

    `find` gives the key of an id and raises `Refused` for an unknown one. `now` is monotonic. The body is checked later, by
    `Verified.check_body`: nobody unknown makes the coordinator read one.
    """
    for name in ("Signature", "Signature-Input"):
        if name not in request.headers:
            raise Refused(401, "unsigned", f"the request has no {name} header; join the fleet first")
    if request.headers.get(EPOCH_HEADER) != epoch:
        raise Refused(401, "stale_epoch", "the coordinator was started anew since the request was signed")
    refusals: list[Refused] = []

    def lookup(key_id: str) -> Ed25519PublicKey:
        try:
            return find(key_id)
        except Refused as error:
            refusals.append(error)
            raise ValueError(error.message) from error

    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=Lookup(lookup))
    try:
        window = datetime.timedelta(seconds=WINDOW_SECONDS)
        results = verifier.verify(request, max_age=window, expect_tag=TAG, require_components=COVERED)
    except HTTPMessageSignaturesException as error:
        if refusals:
            raise refusals[0] from error
        raise Refused(401, "bad_signature", f"the signature is not accepted: {_sentence(error)}") from error
    except Exception as error:  # headers that the library's parser stumbles over
        raise Refused(401, "bad_signature", "the signature's headers cannot be read") from error
    if len(results) != 1 or not results[0].nonce:
        raise Refused(401, "bad_signature", "a request wants one signature with a nonce")
    key_id = str(results[0].parameters["keyid"])
    nonces.use(key_id, str(results[0].nonce), now)
    return Verified(verifier, request, results, key_id)


class Verified(NamedTuple):
    """A request whose head is authentic."""

    verifier: Any
    request: Request
    results: Any
    key_id: str

    def check_body(self, body: bytes) -> None:
        """Raises `Refused` unless this is the body that was signed."""
        try:
            self.verifier.verify_body(self.request, self.results, body)
        except HTTPMessageSignaturesException as error:
            raise Refused(401, "bad_digest", f"the body is not the one that was signed: {_sentence(error)}") from error


class Nonces:
    """Nonces seen in the last minutes; a signature older than the window is refused by its date."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], float] = {}  # in the order of arrival
        self._keep = 2.0 * WINDOW_SECONDS + 20

    def use(self, key_id: str, nonce: str, now: float) -> None:
        """Raises `Refused` if it was used before."""
        for old, at in list(islice(self._seen.items(), 64)):
            if now - at < self._keep:
                break
            del self._seen[old]
        if len(nonce) > 128 or len(key_id) > 64 or (key_id, nonce) in self._seen:
            raise Refused(401, "replayed", "this request was seen before; sign a new one")
        if len(self._seen) >= MAX_NONCES:
            raise Refused(429, "busy", "too many requests at once; try again in a minute", retry_after=60)
        self._seen[key_id, nonce] = now


def _sentence(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
