"""The headers of signed requests: `Refused`, and never accepted unless they are those that were signed."""

import atheris

with atheris.instrument_imports(include=["coordinator", "http_message_signatures", "http_sf"]):
    from coordinator.protocol import keys, signatures

from fuzzing import fuzz

from coordinator.protocol.errors import Refused

KEY, ID, URL = keys.new_key(), "ab" * 16, "https://pi:8443/v1/state?x=1"
GOOD = signatures.Request("GET", URL, {})
signatures.sign(GOOD, KEY, ID, "epoch", b"")
FIELDS = ("Signature-Input", "Signature", "Content-Digest")


def find(key_id):
    if key_id != ID:
        raise Refused(401, "unknown_device", "who is that")
    return KEY.public_key()


def one(data):
    text = data.decode("utf-8", "surrogateescape")  # as aiohttp reads headers
    for name in FIELDS:
        headers = {**GOOD.headers, name: text}
        tried(headers, headers == GOOD.headers)
    parts = text.split("\n", 2)
    if len(parts) == len(FIELDS):
        tried({**GOOD.headers, **dict(zip(FIELDS, parts, strict=True))}, None)


def tried(headers, is_good):
    request = signatures.Request("GET", URL, headers)
    try:
        signatures.verify(request, find, "epoch", signatures.Nonces(), 0.0).check_body(b"")
    except Refused:
        pass
    else:
        assert is_good or headers["Signature-Input"].strip() == GOOD.headers["Signature-Input"]


SEEDS = [GOOD.headers[name].encode() for name in FIELDS] + ["\n".join(GOOD.headers[name] for name in FIELDS).encode()]
SEEDS += [b'a=("@method" "x";sf;bs;key="y");created=1;expires=2;nonce="n";alg="ed25519";tag="t"', b"a=:AAAA:, b=?1, c=1.5;d"]

if __name__ == "__main__":
    fuzz("signatures", one, SEEDS)
