"""Keys, links, manifests: against the vectors of RFC 8032 and 9421, and the cryptography library."""

import base64
import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import Manifest, Restoration, SignedManifest, SignedRestoration

# RFC 8032, 7.1, test 1
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)  # of nothing
# RFC 9421, appendix B.1.4
RFC9421_PEM = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF
-----END PRIVATE KEY-----
"""
RFC9421_PUBLIC = "JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs"


def test_a_public_key_is_written_as_the_standards_write_it():
    key = Ed25519PrivateKey.from_private_bytes(SECRET)
    assert keys.to_bytes(keys.public_text(key)) == PUBLIC
    keys.public_key(keys.to_text(PUBLIC)).verify(SIGNATURE, b"")
    assert keys.public_text(keys.key_from_pem(RFC9421_PEM, Path("x"))) == RFC9421_PUBLIC


def test_a_device_is_named_by_the_hash_of_its_key():
    assert keys.device_id(keys.to_text(PUBLIC)) == hashlib.sha256(PUBLIC).hexdigest()[:32]


def test_a_key_survives_its_file():
    key = keys.new_key()
    again = load_pem_private_key(keys.key_to_pem(key), None)
    assert again.private_bytes_raw() == key.private_bytes_raw()


@pytest.mark.parametrize("data", [b"", b"nonsense", RFC9421_PEM[:60], keys.new_certificate()[0]])
def test_a_file_without_an_ed25519_key_is_refused(data):
    with pytest.raises(CoordinatorError, match=r"k\.pem holds no"):
        keys.key_from_pem(data, Path("k.pem"))


@given(st.binary(max_size=100))
def test_base64url_is_that_of_python_without_padding(data):
    assert keys.to_text(data) == base64.urlsafe_b64encode(data).decode().rstrip("=")
    assert keys.to_bytes(keys.to_text(data)) == data


@pytest.mark.parametrize("text", ["a", "a b", "ä", "a\n", "a\0bc", "ab=c", "abc*"])
def test_other_texts_are_not_base64url(text):
    with pytest.raises(ValueError):
        keys.to_bytes(text)


def test_a_certificate_is_pinned_by_the_hash_that_tls_libraries_see():
    key, certificate = keys.new_certificate()
    der = ssl.PEM_cert_to_DER_cert(certificate.decode())
    assert keys.fingerprint(certificate) == hashlib.sha256(der).digest()
    read = x509.load_pem_x509_certificate(certificate)
    read.verify_directly_issued_by(read)
    assert read.not_valid_after_utc.year == 9999
    assert load_pem_private_key(key, None).public_key() == read.public_key()


# Links ----------------------------------------------------------------------------------------------------------------


def test_a_link_carries_address_code_and_pin():
    code, pin = keys.new_code(), bytes(range(32))
    for address in ("https://pi.local:8443", "https://192.0.2.7:1", "https://[2001:db8::1]:8443"):
        assert keys.read_link(f" {keys.link(address, code, pin)}\n") == (address, code, pin)
    assert keys.read_link(keys.link("https://pi:8443/", code, pin))[0] == "https://pi:8443"


def secret(count=64):
    return keys.to_text(bytes(count))


@pytest.mark.parametrize(
    "text",
    [
        "", "pi:8443", f"http://pi:8443#{secret()}", f"https://#{secret()}", f"https://pi:8443/x#{secret()}",
        f"https://pi:8443?x#{secret()}", "https://pi:8443", f"https://pi:8443#{secret(63)}", f"https://pi:8443#{secret(65)}",
        "https://pi:8443#ä", f"https://pi:99999#{secret()}", f"https://pi:x#{secret()}", f"https://[::1#{secret()}",
        f"https://somebody@pi:8443#{secret()}", f"https://pi\u2100:8443#{secret()}",
    ],
)  # fmt: skip
def test_what_is_no_link_is_refused_with_a_reason(text):
    with pytest.raises(ValueError) as refused:
        keys.read_link(text)
    assert str(refused.value)


@given(st.text(max_size=120))
def test_no_text_does_more_than_be_refused(text):
    with pytest.raises(ValueError):
        keys.read_link(f"https://{text}")


# Manifests ------------------------------------------------------------------------------------------------------------

MANIFEST = Manifest(fleet="f", round=3, sha256="ab" * 32, size=7, previous="", base_sha256="cd" * 32, devices=2)


def test_a_manifest_is_opened_with_its_own_key_only():
    key = keys.new_key()
    signed = keys.sign_manifest(key, MANIFEST)
    assert keys.open_manifest(signed, keys.public_text(key)) == MANIFEST
    key.public_key().verify(keys.to_bytes(signed.signature), keys.to_bytes(signed.manifest))
    with pytest.raises(ValueError, match="not the coordinator's"):
        keys.open_manifest(signed, keys.public_text(keys.new_key()))


def test_a_manifest_with_any_byte_altered_is_refused():
    key = keys.new_key()
    signed = keys.sign_manifest(key, MANIFEST)
    data = keys.to_bytes(signed.manifest)
    for place in range(len(data)):
        altered = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(ValueError, match="not the coordinator's"):
            keys.open_manifest(SignedManifest(manifest=keys.to_text(altered), signature=signed.signature), keys.public_text(key))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"fleet":"\xff"}', b"[" * 10_000, b'{"fleet":' * 5000])
def test_signed_nonsense_is_refused(data):
    key = keys.new_key()
    signed = SignedManifest(manifest=keys.to_text(data), signature=keys.to_text(key.sign(data)))
    with pytest.raises(ValueError):
        keys.open_manifest(signed, keys.public_text(key))


@pytest.mark.parametrize("change", [{"manifest": "*"}, {"signature": "*"}, {"signature": ""}, {"manifest": "ä"}])
def test_manifests_that_are_no_base64_are_refused(change):
    key = keys.new_key()
    signed = keys.sign_manifest(key, MANIFEST)
    fields = {"manifest": signed.manifest, "signature": signed.signature, **change}
    with pytest.raises(ValueError):
        keys.open_manifest(SignedManifest(**fields), keys.public_text(key))


def test_a_link_of_the_chain_is_the_hash_of_the_signed_bytes():
    signed = keys.sign_manifest(keys.new_key(), MANIFEST)
    assert keys.chain_hash(signed) == hashlib.sha256(keys.to_bytes(signed.manifest)).hexdigest()


def test_the_next_link_names_the_hash_of_the_signed_bytes_before():
    first = keys.next_manifest(None, fleet="f", number=0, sha256="a" * 64, size=1, base_sha256="b" * 64, devices=1)
    assert first.previous == ""
    signed = keys.sign_manifest(keys.new_key(), first)
    padded = signed.manifest + "=" * (-len(signed.manifest) % 4)
    second = keys.next_manifest(signed, fleet="f", number=1, sha256="c" * 64, size=2, base_sha256="b" * 64, devices=3)
    assert second.previous == hashlib.sha256(base64.urlsafe_b64decode(padded)).hexdigest()
    assert (second.round, second.devices, second.rolled_back_to) == (1, 3, None)


def test_a_restoration_is_believed_only_with_the_coordinators_signature():
    key, other = keys.new_key(), keys.new_key()
    note = Restoration(fleet="f", number=1, round=7, manifest_hash="ab")
    signed = keys.sign_restoration(key, note)
    assert keys.open_restoration(signed, keys.public_text(key)) == note
    with pytest.raises(ValueError, match="not the coordinator's"):
        keys.open_restoration(signed, keys.public_text(other))
    link = keys.sign_manifest(key, MANIFEST)
    with pytest.raises(ValueError, match="number"):  # what was signed as something else is no note
        keys.open_restoration(SignedRestoration(restoration=link.manifest, signature=link.signature), keys.public_text(key))
