"""Messages of other versions: what is not known is ignored, and what an older side does not know is not sent."""

import json

import msgspec
import pytest

from coordinator.protocol import messages
from coordinator.protocol.messages import Commit, State, decode, encode

COMMIT = {"sha256": "ab" * 32, "trained_from": 0, "tokens": 1, "expected_round": 1}
SETTINGS = messages.Settings(local_steps=10, update_format="float16", averaging="separate")
STATE = State(open_round=1, newest=None, has_contributed=False, settings=SETTINGS, next_poll_seconds=5.0)


@pytest.mark.parametrize("kind", messages.Message.__subclasses__(), ids=lambda kind: kind.__name__)
def test_no_message_refuses_fields_that_it_does_not_know(kind):
    assert not kind.__struct_config__.forbid_unknown_fields


def test_fields_of_a_newer_version_are_ignored_at_every_depth():
    newer = json.loads(encode(STATE)) | {"weather": {"rain": [1]}}
    newer["settings"] |= {"noise": 0.5}
    assert decode(json.dumps(newer).encode(), State) == STATE


def test_to_a_device_that_sends_no_ids_the_state_is_that_of_old():
    assert set(json.loads(encode(STATE))) == {"open_round", "newest", "has_contributed", "settings", "next_poll_seconds"}
    assert decode(encode(STATE), State).counted == []


def test_a_commit_without_an_id_is_that_of_old():
    assert json.loads(encode(Commit(**COMMIT))) == COMMIT
    assert decode(json.dumps({**COMMIT, "validation_loss": None}).encode(), Commit).update_id is None


@pytest.mark.parametrize("update_id", ["0", "0123456789abcdef", "f" * 64])
def test_an_update_id_travels(update_id):
    assert decode(encode(Commit(**COMMIT, update_id=update_id)), Commit).update_id == update_id


@pytest.mark.parametrize("update_id", ["", "g", "A", "0" * 65, "00\n", " 00", 7])
def test_an_update_id_is_one_to_64_hexadecimal_digits(update_id):
    with pytest.raises(msgspec.DecodeError):
        decode(json.dumps({**COMMIT, "update_id": update_id}).encode(), Commit)
