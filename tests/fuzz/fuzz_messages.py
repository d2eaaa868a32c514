"""JSON of every message: `DecodeError`, or a message that is the same after it is written and read."""

import atheris

with atheris.instrument_imports(include=["coordinator"]):
    from coordinator.protocol import messages

import msgspec
from fuzzing import fuzz

KINDS = [kind for kind in messages.Message.__subclasses__() if kind.__module__ == messages.__name__]
SETTINGS = messages.Settings(local_steps=10, update_format="float16", averaging="separate")
GENERALIST = messages.Generalist(
    base_name="tiny", base_sha256="ab" * 32, form="lora", scale=4.0, tensors={"generalist.x": (2, 3)}
)
EXAMPLES = [
    GENERALIST,
    SETTINGS,
    messages.Join(code="x", name=None, public_key="x", generalist=GENERALIST, version="1"),
    messages.Joined(fleet="f", device="d", name="n", signing_key="k", settings=SETTINGS),
    messages.Manifest(fleet="f", round=1, sha256="ab" * 32, size=3, previous="", base_sha256="cd" * 32, devices=2),
    messages.SignedManifest(manifest="AA", signature="AA"),
    messages.Commit(sha256="ab" * 32, trained_from=-1, tokens=5, expected_round=0, validation_loss=1.5),
    messages.Refusal(round=3, loss_before=1.0, loss_after=2.0),
    messages.Problem(error="x", message="y"),
]


def one(data):
    for kind in KINDS:
        try:
            found = messages.decode(data, kind)
        except msgspec.DecodeError as error:
            str(error).encode()
        else:
            assert messages.decode(messages.encode(found), kind) == found


if __name__ == "__main__":
    fuzz("messages", one, [messages.encode(example) for example in EXAMPLES])
