"""Links, keys in base64url, and manifests, signed whatever they hold: `ValueError` or what was meant."""

import atheris

with atheris.instrument_imports(include=["coordinator", "urllib"]):
    from coordinator.protocol import keys

from fuzzing import fuzz

from coordinator.protocol.messages import Manifest, SignedManifest, encode

KEY = keys.new_key()
PUBLIC = keys.public_text(KEY)
MANIFEST = Manifest(fleet="f", round=1, sha256="ab" * 32, size=3, previous="", base_sha256="cd" * 32, devices=2)
LINK = keys.link("https://pi.local:8443", keys.new_code(), bytes(32))


def one(data):
    text = data.decode("utf-8", "replace")
    for read in (keys.read_link, keys.to_bytes, keys.public_key, keys.device_id):
        attempt(read, text)
    link = attempt(keys.read_link, f"https://{text}#{LINK.partition('#')[2]}")
    if link:
        assert keys.read_link(keys.link(*link)) == link
    signature = keys.to_text(KEY.sign(data))
    attempt(keys.open_manifest, SignedManifest(manifest=keys.to_text(data), signature=signature), PUBLIC)
    assert attempt(keys.open_manifest, SignedManifest(manifest=text, signature=text), PUBLIC) is None
    assert attempt(keys.open_manifest, SignedManifest(manifest=keys.to_text(data), signature=text), PUBLIC) is None


def attempt(read, *given):
    try:
        return read(*given)
    except ValueError:
        return None


SEEDS = [LINK.encode(), PUBLIC.encode(), encode(MANIFEST), b"[2001:db8::1]:8443", b"pi:8443/", b"a@b:1"]

if __name__ == "__main__":
    fuzz("keys", one, SEEDS)
