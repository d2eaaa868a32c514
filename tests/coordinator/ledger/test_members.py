"""Who belongs to the fleet: invitations are good once, and every refusal leaves the ledger as it was."""

import math
import re

import pytest

from coordinator.protocol import keys
from coordinator.protocol.messages import MAX_TENSORS
from tests.coordinator.ledger.test_fleet import PIN, SHAPES, Room, arrays, generalist, refused


@pytest.fixture
def room(tmp_path):
    found = Room(tmp_path / "room")
    yield found
    found.fleet.database.close()


def test_an_invitation_is_good_for_one_device_which_may_ask_again(room):
    code, key = room.code(), keys.new_key()
    first = room.join(code=code, key=key)
    before = room.ledger()
    assert room.join(code=code, key=key).id == first.id  # the answer was lost
    refused("used_code", room.join, code=code)
    assert room.ledger() == before


def test_an_invitation_ends_after_a_day(room):
    early, late = room.code(), room.code()
    room.now += 86400
    room.join(code=early)
    room.now += 1
    before = room.ledger()
    refused("expired_code", room.join, code=late)
    assert room.ledger() == before
    room.code()  # cleans up
    refused("unknown_code", room.join, code=late)


def test_of_a_code_only_its_hash_is_kept(room):
    code = room.code("kitchen-pi")
    assert code not in str(room.ledger())
    assert keys.code_hash(code) in str(room.ledger())


def test_names_are_the_wish_or_the_invitation_or_made_up(room):
    assert room.join().name == "device-1"
    assert room.join(code=room.code("kitchen-pi")).name == "kitchen-pi"
    assert room.join(code=room.code("attic-pi"), name="cellar-pi").name == "cellar-pi"
    assert room.join().name == "device-2"
    before = room.ledger()
    for name in ("kitchen-pi", "device-1"):
        refused("name_taken", room.join, code=room.code(), name=name)
    for name in ("", "a b", "../x", "-x", "ä", "x" * 65, "x\n", "<b>"):
        refused("bad_name", room.members.invite, name, "https://pi", PIN)
    assert room.ledger()["devices"] == before["devices"]


def test_a_removed_device_comes_back_with_a_new_invitation_and_keeps_its_counts(room):
    key = keys.new_key()
    device = room.join(key=key, name="lost-pi")
    room.members.record_contact(device, 100, 10)
    room.fleet.revoke("lost-pi")
    refused("revoked", room.members.member, device.id)
    room.crash()
    refused("revoked", room.members.member, device.id)
    again = room.join(key=key, name="found-pi")
    assert (again.id, again.name, again.revoked) == (device.id, "found-pi", None)
    room.members.record_contact(again, 1, 0)
    room.members.flush(now_at_all_costs=True)
    room.crash()
    assert room.members.member(device.id).name == "found-pi"


def test_coming_back_does_not_forget_bytes(room):
    key = keys.new_key()
    device = room.join(key=key)
    room.members.record_contact(device, 100, 10)
    again = room.join(key=key)
    assert (again.bytes_in, again.bytes_out) == (100, 10)


def test_a_device_reads_the_newest_generalist_and_those_since_it_joined(room):
    def readable(device):
        return [number for number in range(room.chain.newest_number + 1) if room.fleet.may_read(device, number)]

    key, first = keys.new_key(), room.join()
    for _ in range(3):
        room.step((first, arrays(0.5)))
    late = room.join(key=key)
    room.step((first, arrays(0.5)), (late, arrays(0.5)))
    assert (readable(first), readable(late)) == ([0, 1, 2, 3], [2, 3])
    assert readable(room.join(key=key)) == [2, 3]  # again, with a new invitation
    room.fleet.revoke(late.name)
    room.step((first, arrays(0.5)))
    again = room.join(key=key)  # was removed: what came meanwhile is not for it
    assert readable(again) == [4]
    room.crash()
    assert readable(room.members.member(again.id)) == [4]


@pytest.mark.parametrize("text", ["", "*", keys.to_text(bytes(31)), keys.to_text(bytes(33)), "ä"])
def test_what_is_no_key_does_not_join(room, text):
    wish = room.wish()
    wish.public_key = text
    before = room.ledger()
    refused("bad_key", room.fleet.join, wish)
    assert room.ledger() == before


NAME = next(iter(SHAPES))
BAD = {
    "no tensors": {"tensors": {}},
    "many tensors": {"tensors": {f"generalist.{i}": (1,) for i in range(MAX_TENSORS + 1)}},
    "a specialist": {"tensors": {"specialist.x": (1,)}},
    "a router": {"tensors": {"generalist.blk.0.router": (1,)}},
    "a path": {"tensors": {"generalist./../x": (1,)}},
    "capitals": {"tensors": {NAME.upper(): (1,)}},
    "a line break": {"tensors": {f"{NAME}\n": (1,)}},
    "no shape": {"tensors": {NAME: ()}},
    "five axes": {"tensors": {NAME: (1, 1, 1, 1, 1)}},
    "an empty axis": {"tensors": {NAME: (0, 3)}},
    "a negative axis": {"tensors": {NAME: (-2, -3)}},
    "a huge axis": {"tensors": {NAME: ((1 << 24) + 1,)}},
    "too many numbers": {"tensors": {NAME: (1 << 15, 1 << 14)}},
    "integers without end": {"tensors": {NAME: (1 << 63,) * 10_000}},
    "no base": {"base_sha256": "nothing"},
    "no name": {"base_name": ""},
    "a long name": {"base_name": "x" * 256},
    "no form": {"form": "dense"},
    "no scale": {"scale": 0.0},
    "an infinite scale": {"scale": math.inf},
    "no number as a scale": {"scale": math.nan},
}


@pytest.mark.parametrize("known", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("case", BAD)
def test_a_generalist_that_is_none_does_not_join_a_fleet(room, case, known):
    if known:
        room.join()
    code = room.code()
    before = room.ledger()
    assert len(refused("bad_generalist", room.join, code=code, found=generalist(**BAD[case])).message) < 300
    assert room.ledger() == before
    room.join(code=code)  # the invitation was not used up


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_sha256": "cd" * 32}, "same file"),
        ({"form": "parallel"}, "same .model."),
        ({"tensors": {**SHAPES, NAME: (2, 4)}}, "experts of 14"),
        ({"tensors": {NAME: SHAPES[NAME]}}, "same .model."),
        ({"scale": 8.0}, "scaled by 4 and this device's by 8"),
    ],
)
def test_every_device_must_bring_what_the_fleet_trains(room, changes, message):
    room.join()
    code = room.code()
    before = room.ledger()
    error = refused("other_generalist", room.join, code=code, found=generalist(**changes))
    assert re.search(message, error.message)
    assert room.ledger() == before


def test_contacts_reach_the_disk_every_ten_minutes_and_at_the_end(room):
    device = room.join()
    written = lambda: room.fleet.database.value("SELECT bytes_in FROM devices")  # noqa: E731
    room.members.record_contact(device, 5, 0)
    room.members.flush()
    assert written() == 0
    room.now += 600
    room.members.flush()
    assert written() == 5


def test_strangers_are_told_to_join(room):
    assert refused("unknown_device", room.members.member, "ab" * 16).status == 401
