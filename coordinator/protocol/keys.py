"""Keys and what they make: signatures' keys, the pinned TLS certificate, invitation links, the chain of manifests.

A device recognises its coordinator by the SHA-256 of the certificate, which is part of the invitation. That needs no authority
and no date: boards have no clock.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import secrets
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import Manifest, Message, Restoration, SignedManifest, SignedRestoration, T, decode, encode

CODE_BYTES = 32
PIN_BYTES = 32


def to_text(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def to_bytes(text: str) -> bytes:
    """The reverse; raises `ValueError`."""
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeError) as error:
        raise ValueError(f"{text[:20]!r} is not base64url") from error


# Signing keys -------------------------------------------------------------------------------------------------------


def new_key() -> Ed25519PrivateKey:
    """A fresh Ed25519 key."""
    return Ed25519PrivateKey.generate()


def key_to_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as an unencrypted PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_from_pem(data: bytes, source: Path) -> Ed25519PrivateKey:
    """The key in a PEM; raises `CoordinatorError`."""
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CoordinatorError(f"{source} holds no private key, or a damaged one; restore it from a backup") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise CoordinatorError(f"{source} holds no Ed25519 key; restore it from a backup")
    return key


def public_text(key: Ed25519PrivateKey) -> str:
    """The public key, base64url of its 32 bytes."""
    return to_text(key.public_key().public_bytes_raw())


def public_key(text: str) -> Ed25519PublicKey:
    """The reverse; raises `ValueError`."""
    return Ed25519PublicKey.from_public_bytes(to_bytes(text))


def device_id(public: str) -> str:
    """A device's id: the first half of the SHA-256 of its public key."""
    return hashlib.sha256(to_bytes(public)).hexdigest()[:32]


# TLS ----------------------------------------------------------------------------------------------------------------


def new_certificate() -> tuple[bytes, bytes]:
    """PEM of a fresh private key (P-256) and of its self-signed certificate, which does not expire."""
    from cryptography import x509  # 2.5 MB that only the first start needs
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "comigs-coordinator")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2000, 1, 1)).not_valid_after(datetime.datetime(9999, 12, 31))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("comigs-coordinator")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    return key_to_pem(key), certificate.public_bytes(Encoding.PEM)


def fingerprint(certificate_pem: bytes) -> bytes:
    """SHA-256 of the certificate (DER), 32 bytes: what devices pin."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_pem.decode())).digest()


# Invitations --------------------------------------------------------------------------------------------------------


def new_code() -> str:
    """A one-time code of 256 random bits."""
    return to_text(secrets.token_bytes(CODE_BYTES))


def code_hash(code: str) -> str:
    """What the coordinator keeps of a code."""
    return hashlib.sha256(code.encode()).hexdigest()


def link(address: str, code: str, pin: bytes) -> str:
    """What a person copies to a device: the address, and behind # the code and the pin."""
    return f"{address}#{to_text(to_bytes(code) + pin)}"


def read_link(text: str) -> tuple[str, str, bytes]:
    """Address, code and pin of a link; raises `ValueError` with the reason."""
    parts = urlsplit(text.strip())
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query or "@" in parts.netloc:
        raise ValueError("it is not of the form https://host:port#CODE")
    parts.port  # noqa: B018  raises for a bad port
    secret = to_bytes(parts.fragment)
    if len(secret) != CODE_BYTES + PIN_BYTES:
        raise ValueError("its code is incomplete")
    return f"https://{parts.netloc}", to_text(secret[:CODE_BYTES]), secret[CODE_BYTES:]


# The chain of manifests ---------------------------------------------------------------------------------------------


def next_manifest(
    previous: SignedManifest | None, *, fleet: str, number: int, sha256: str, size: int, base_sha256: str, devices: int,
    rolled_back_to: int | None = None, change_sha256: str | None = None, change_size: int | None = None,
) -> Manifest:  # fmt: skip
    """The chain's next link; `previous` is None for the first one."""
    return Manifest(
        fleet=fleet, round=number, sha256=sha256, size=size, previous="" if previous is None else chain_hash(previous),
        base_sha256=base_sha256, devices=devices, rolled_back_to=rolled_back_to,
        change_sha256=change_sha256, change_size=change_size,
    )  # fmt: skip


def sign_manifest(key: Ed25519PrivateKey, manifest: Manifest) -> SignedManifest:
    """The manifest's bytes and their signature."""
    data, signature = _sign(key, manifest)
    return SignedManifest(manifest=data, signature=signature)


def open_manifest(signed: SignedManifest, signing_key: str) -> Manifest:
    """The manifest, if the coordinator with this key signed it; raises `ValueError` otherwise."""
    return _open(signed.manifest, signed.signature, signing_key, Manifest)


def sign_restoration(key: Ed25519PrivateKey, restoration: Restoration) -> SignedRestoration:
    """The note's bytes and their signature."""
    data, signature = _sign(key, restoration)
    return SignedRestoration(restoration=data, signature=signature)


def open_restoration(signed: SignedRestoration, signing_key: str) -> Restoration:
    """The note, if the coordinator with this key signed it; raises `ValueError` otherwise."""
    return _open(signed.restoration, signed.signature, signing_key, Restoration)


def _sign(key: Ed25519PrivateKey, message: Message) -> tuple[str, str]:
    data = encode(message)
    return to_text(data), to_text(key.sign(data))


def _open(data_text: str, signature: str, signing_key: str, kind: type[T]) -> T:
    data = to_bytes(data_text)
    try:
        public_key(signing_key).verify(to_bytes(signature), data)
    except InvalidSignature as error:
        raise ValueError("its signature is not the coordinator's") from error
    try:
        return decode(data, kind)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error


def chain_hash(signed: SignedManifest) -> str:
    """What the next manifest names as `previous`."""
    return hashlib.sha256(to_bytes(signed.manifest)).hexdigest()
