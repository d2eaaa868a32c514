"""Who asks, for exactly what, only once. The reference is a signature base written by hand after RFC 9421, 2.5."""

import base64
import datetime
import hashlib
import re

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, HTTPSignatureKeyResolver, algorithms
from hypothesis import given
from hypothesis import strategies as st

from coordinator.protocol import keys, signatures
from coordinator.protocol.errors import Refused
from coordinator.protocol.signatures import COVERED, TAG, WINDOW_SECONDS, Nonces, Request, sign, verify

KEY, ID, EPOCH = keys.new_key(), "ab" * 16, "epoch"
URL = "https://pi.local:8443/v1/manifests?after=3"


def find(key_id):
    if key_id != ID:
        raise Refused(401, "unknown_device", "who is that")
    return KEY.public_key()


def signed(method="POST", url=URL, body=b"{}", key=KEY, key_id=ID, epoch=EPOCH, offset=0.0):
    request = Request(method, url, {"Content-Type": "application/json"})
    sign(request, key, key_id, epoch, body, offset)
    return request


def accepted(request, body=b"{}", nonces=None, epoch=EPOCH):
    found = verify(request, find, epoch, nonces or Nonces(), 0.0)
    found.check_body(body)
    return found


def refused(code, request, body=b"{}", **options):
    with pytest.raises(Refused) as error:
        accepted(request, body, **options)
    assert (error.value.status, error.value.code) == (401, code), error.value.message


def with_header(request, name, value):
    return request._replace(headers={**request.headers, name: value})


def test_a_signed_request_is_accepted_with_its_own_body():
    for body in (b"{}", b"", bytes(range(256)) * 100):
        assert accepted(signed(body=body), body).key_id == ID


def test_the_signature_is_that_of_the_base_that_the_standard_says():
    request = signed()
    parameters = re.fullmatch(r"comigs=(.*)", request.headers["Signature-Input"])[1]
    digest = base64.b64encode(hashlib.sha256(b"{}").digest()).decode()
    base = (
        '"@method": POST\n"@authority": pi.local:8443\n"@path": /v1/manifests\n"@query": ?after=3\n'
        f'"content-digest": sha-256=:{digest}:\n"comigs-epoch": {EPOCH}\n"@signature-params": {parameters}'
    )
    assert request.headers["Content-Digest"] == f"sha-256=:{digest}:"
    found = base64.b64decode(re.fullmatch(r"comigs=:(.*):", request.headers["Signature"])[1])
    KEY.public_key().verify(found, base.encode())


def test_the_library_accepts_the_example_of_the_standard():
    """RFC 9421, appendix B.2.6."""
    key = keys.public_key("JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs")
    pem = "MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF"
    private = load_pem_private_key(f"-----BEGIN PRIVATE KEY-----\n{pem}\n-----END PRIVATE KEY-----\n".encode(), None)
    covered = '("date" "@method" "@path" "@authority" "content-type" "content-length")'
    parameters = f'{covered};created=1618884473;keyid="test-key-ed25519"'
    signature = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    headers = {
        "Date": "Tue, 20 Apr 2021 02:07:55 GMT", "Content-Type": "application/json", "Content-Length": "18",
        "Signature-Input": f"sig-b26={parameters}", "Signature": f"sig-b26=:{signature}:",
    }  # fmt: skip
    base = (
        '"date": Tue, 20 Apr 2021 02:07:55 GMT\n"@method": POST\n"@path": /foo\n"@authority": example.com\n'
        f'"content-type": application/json\n"content-length": 18\n"@signature-params": {parameters}'
    ).encode()
    key.verify(base64.b64decode(signature), base)
    assert private.sign(base) == base64.b64decode(signature)

    class Known(HTTPSignatureKeyResolver):
        def resolve_public_key(self, key_id):
            return key

    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=Known())
    age = datetime.timedelta(days=365 * 100)
    assert verifier.verify(Request("POST", "https://example.com/foo?param=Value&Pet=dog", headers), max_age=age)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda r: r._replace(method="PUT"), "bad_signature"),
        (lambda r: r._replace(method="post"), "bad_signature"),
        (lambda r: r._replace(url=URL.replace("pi.local", "evil.local")), "bad_signature"),
        (lambda r: r._replace(url=URL.replace("8443", "8444")), "bad_signature"),
        (lambda r: r._replace(url=URL.replace("manifests", "updates")), "bad_signature"),
        (lambda r: r._replace(url=URL.replace("/v1/", "/v1//")), "bad_signature"),
        (lambda r: r._replace(url=URL.replace("manifests", "%6danifests")), "bad_signature"),
        (lambda r: r._replace(url=URL.replace("after=3", "after=4")), "bad_signature"),
        (lambda r: r._replace(url=URL + "&x=1"), "bad_signature"),
        (lambda r: r._replace(url=URL.split("?")[0]), "bad_signature"),
        (lambda r: with_header(r, "Content-Digest", "sha-256=:" + "A" * 43 + "=:"), "bad_signature"),
        (lambda r: with_header(r, "Comigs-Epoch", "older"), "stale_epoch"),
        (lambda r: with_header(r, "Signature", r.headers["Signature"].replace(":", ":AA", 1)), "bad_signature"),
        (lambda r: with_header(r, "Signature", "comigs=:" + "A" * 86 + "==:"), "bad_signature"),
        (lambda r: with_header(r, "Signature", "other" + r.headers["Signature"]), "bad_signature"),
        (lambda r: with_header(r, "Signature-Input", r.headers["Signature-Input"].replace(ID, "cd" * 16)), "unknown_device"),
        (lambda r: with_header(r, "Signature-Input", r.headers["Signature-Input"].replace("nonce", "nonsense")), "bad_signature"),
        (lambda r: with_header(r, "Signature-Input", r.headers["Signature-Input"] + ";x=1"), "bad_signature"),
        (lambda r: with_header(r, "Signature-Input", "\udcff"), "bad_signature"),
        (lambda r: with_header(r, "Signature-Input", "(" * 4000), "bad_signature"),
        (lambda r: r._replace(headers={k: v for k, v in r.headers.items() if k != "Signature"}), "unsigned"),
        (lambda r: r._replace(headers={k: v for k, v in r.headers.items() if k != "Signature-Input"}), "unsigned"),
        (lambda r: r._replace(headers={k: v for k, v in r.headers.items() if k != "Content-Digest"}), "bad_signature"),
        (lambda r: r._replace(headers={k: v for k, v in r.headers.items() if k != "Comigs-Epoch"}), "stale_epoch"),
    ],
)
def test_whatever_is_altered_is_refused(change, code):
    refused(code, change(signed()))


def test_another_body_is_refused():
    for body in (b"", b"{} ", b"[]"):
        refused("bad_digest", signed(), body)


def test_another_key_under_a_known_name_is_refused():
    refused("bad_signature", signed(key=keys.new_key()))


def signed_over(covered, **options):
    """As `signed`, with the choices that `sign` does not leave to its caller."""
    request = Request("POST", URL, {signatures.EPOCH_HEADER: EPOCH})
    options = {"key_id": ID, "nonce": "n", "tag": TAG, "label": "comigs", **options}
    signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=signatures.Lookup(lambda _: KEY))
    signer.sign(request, covered_component_ids=covered, **options)
    return request


def test_a_hand_made_signature_over_everything_is_accepted():
    accepted(signed_over(COVERED, body=b"{}"))


@pytest.mark.parametrize("missing", COVERED)
def test_a_signature_that_leaves_something_out_is_refused(missing):
    covered = [name for name in COVERED if name != missing]
    options = {} if missing == "content-digest" else {"body": b"{}"}
    refused("bad_signature", signed_over(covered, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"tag": "another"},
        {"tag": None},
        {"nonce": None},
        {"nonce": ""},
        {"created": datetime.timedelta(seconds=-WINDOW_SECONDS - 10)},
        {"created": datetime.timedelta(seconds=WINDOW_SECONDS)},
    ],
    ids=["tag", "no tag", "no nonce", "empty nonce", "old", "future"],
)
def test_a_signature_with_other_parameters_is_refused(options):
    if "created" in options:  # seconds from now: the collection of all tests may be minutes ago
        options = {"created": datetime.datetime.now(datetime.timezone.utc) + options["created"]}
    refused("bad_signature", signed_over(COVERED, body=b"{}", **options))


def test_a_request_with_two_signatures_is_refused():
    request, other = signed_over(COVERED, body=b"{}", nonce="a"), signed_over(COVERED, body=b"{}", nonce="b", label="other")
    both = {name: f"{request.headers[name]}, {other.headers[name]}" for name in ("Signature", "Signature-Input")}
    refused("bad_signature", request._replace(headers=request.headers | both))


def test_names_and_nonces_without_end_are_refused():
    refused("replayed", signed_over(COVERED, body=b"{}", nonce="n" * 129))
    with pytest.raises(Refused, match="seen before"):
        verify(signed(key_id="x" * 65), lambda key_id: KEY.public_key(), EPOCH, Nonces(), 0.0)


def test_a_request_is_accepted_once():
    nonces, request = Nonces(), signed()
    accepted(request, nonces=nonces)
    refused("replayed", request, nonces=nonces)
    accepted(signed(), nonces=nonces)


def test_a_request_of_before_a_restart_is_refused_as_stale():
    refused("stale_epoch", signed(epoch="before"))


def test_a_device_without_a_clock_is_helped_by_its_offset(monkeypatch):
    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(0, tz)

    right = datetime.datetime.now(datetime.timezone.utc).timestamp()
    monkeypatch.setattr(datetime, "datetime", Wrong)
    request, late = signed(offset=right), signed()
    monkeypatch.undo()
    accepted(request)
    refused("bad_signature", late)


def test_nonces_are_kept_as_long_as_their_signatures_are_fresh_and_not_for_ever():
    nonces = Nonces()
    for number in range(1000):
        nonces.use("a", str(number), float(number))
    assert len(nonces._seen) < 400
    for number in (999, 999 - WINDOW_SECONDS * 2):
        with pytest.raises(Refused, match="seen before"):
            nonces.use("a", str(number), 999.0)
    nonces.use("b", "999", 999.0)


def test_too_many_nonces_are_refused_for_a_moment(monkeypatch):
    monkeypatch.setattr(signatures, "MAX_NONCES", 10)
    nonces = Nonces()
    for number in range(10):
        nonces.use("a", str(number), 0.0)
    with pytest.raises(Refused, match="too many") as error:
        nonces.use("a", "x", 1.0)
    assert (error.value.status, error.value.retry_after) == (429, 60)
    nonces.use("a", "x", 1000.0)


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_headers_do_more_than_be_refused(one, other):
    headers = {"Signature": one, "Signature-Input": other, "Comigs-Epoch": EPOCH}
    with pytest.raises(Refused):
        verify(Request("GET", URL, headers), find, EPOCH, Nonces(), 0.0)
