"""Payloads that are damaged or gone, a clock that was wrong, a ledger that another program holds: the coordinator goes on."""

import logging
import shutil
import sqlite3
from contextlib import closing

import pytest

from coordinator.ledger.clock import Clock
from coordinator.ledger.database import Database
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError, Refused
from tests.coordinator.ledger.test_chain import grown, opened, refuse
from tests.coordinator.ledger.test_fleet import Room, arrays, refused


def gone(path):
    path.unlink()


def short(path):
    path.write_bytes(path.read_bytes()[:40])


def changed(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 0xFF
    path.write_bytes(data)


damages = pytest.mark.parametrize("damage", [gone, short, changed])


@pytest.fixture
def room(tmp_path):
    found = Room(tmp_path / "room")
    yield found
    found.fleet.database.close()


def payload(room, query, *values):
    return room.fleet.payloads.path(room.fleet.database.value(query, *values))


def generalist(room, number):
    """The payload of a generalist that cannot be made again: its change is gone."""
    found = payload(room, "SELECT sha256 FROM rounds WHERE number = ?", number)
    for row in room.fleet.database.rows("SELECT change_sha256 FROM rounds WHERE sha256 = ?", found.name):
        room.fleet.payloads.drop(str(row["change_sha256"]))
    return found


def lost(room):
    return [row["lost"] for row in room.fleet.database.rows("SELECT lost FROM rounds ORDER BY number")]


@damages
@pytest.mark.parametrize("starts", [False, True])
def test_a_damaged_update_is_left_out_and_named_and_the_others_count(room, damage, starts, caplog):
    first, second = room.join(name="kitchen-pi"), room.join(name="attic-pi")
    room.step((first, arrays(1.0)))
    room.commit(first, arrays(4.0), update_id="a1")
    damage(payload(room, "SELECT sha256 FROM updates WHERE round = 1"))
    if starts:
        room.crash()
        assert room.fleet.state(first).counted == []
        assert not room.fleet.state(first).has_contributed
    room.commit(second, arrays(2.0), update_id="b1")
    if starts:
        room.commit(first, arrays(3.0), update_id="a2")
    room.fleet.close_if_complete()
    room.publish()
    assert room.value() == (3.5 if starts else 3.0)
    assert "the update of kitchen-pi in round 1 is damaged or gone" in caplog.text


@damages
def test_a_lost_update_that_comes_again_counts(room, damage):
    first, second = room.join(), room.join()
    room.step((first, arrays(1.0)))
    room.commit(first, arrays(4.0), update_id="a1")
    damage(payload(room, "SELECT sha256 FROM updates WHERE round = 1"))
    room.crash()
    room.commit(first, arrays(4.0), update_id="a1")
    room.commit(first, arrays(4.0), update_id="a1")
    room.step((second, arrays(0.0)))
    assert room.value() == 3.0
    assert room.fleet.state(first).counted == ["a1"]


@damages
def test_a_damaged_first_update_leaves_the_first_round_open(room, damage):
    device = room.join()
    room.commit(device, arrays(1.0))
    damage(payload(room, "SELECT sha256 FROM updates"))
    room.crash()
    room.publish()
    assert (room.chain.newest_number, room.fleet.open_round) == (-1, 0)
    room.step((device, arrays(2.0)))
    assert room.value() == 2.0


@damages
def test_where_the_newest_generalist_is_damaged_the_one_before_is_published_again(tmp_path, damage, caplog):
    room = Room(tmp_path / "room", goal=1)
    devices = grown(room, 1.0, 2.0, 4.0)
    damage(generalist(room, 2))
    room.crash()
    newest = opened(room)[-1]
    assert (newest.round, newest.rolled_back_to, room.value()) == (3, 1, 2.0)
    assert newest.previous == keys.chain_hash(room.chain.manifests(-1)[2])
    assert "generalist 2 is damaged or gone" in caplog.text
    assert [bool(each) for each in lost(room)] == [False, False, True, False, False]
    room.step((devices[0], arrays(1.0)))
    assert room.value() == 3.0
    room.fleet.database.close()


@damages
def test_a_round_is_added_to_the_last_sound_generalist(tmp_path, damage):
    room = Room(tmp_path / "room", goal=1)
    devices = grown(room, 1.0, 2.0, 4.0)
    for number in (1, 2):
        damage(generalist(room, number))
    room.commit(devices[0], arrays(0.5))
    room.publish()
    assert (room.chain.newest_number, room.value()) == (3, 1.5)
    room.crash()
    assert (room.chain.newest_number, room.value()) == (3, 1.5)
    room.fleet.database.close()


@damages
@pytest.mark.parametrize("numbers", [(2,), (1,), (1, 2)])
def test_damaged_generalists_are_made_again_from_the_one_before_and_the_change(tmp_path, damage, numbers, caplog):
    room = Room(tmp_path / "room", goal=1)
    grown(room, 1.0, 2.0, 4.0)
    paths = [payload(room, "SELECT sha256 FROM rounds WHERE number = ?", number) for number in numbers]
    before, manifests = [path.read_bytes() for path in paths], room.chain.manifests(-1)
    for path in paths:
        damage(path)
    room.fleet.lose({path.name for path in paths})
    assert [path.read_bytes() for path in paths] == before
    assert (lost(room), room.chain.manifests(-1)) == ([None] * 4, manifests)
    assert caplog.text.count("was made again") == len(numbers)
    room.crash()
    assert room.value() == 4.0
    room.fleet.database.close()


@damages
def test_a_damaged_generalist_that_the_next_round_did_not_change_is_made_again(tmp_path, damage, caplog):
    room = Room(tmp_path / "room", goal=1)
    grown(room, 1.0, 2.0, 2.0)
    path = payload(room, "SELECT sha256 FROM rounds WHERE number = 1")
    assert path == payload(room, "SELECT sha256 FROM rounds WHERE number = 2")
    damage(path)
    room.crash()
    assert (room.value(), lost(room), caplog.text.count("was made again")) == (2.0, [None] * 4, 1)
    room.fleet.database.close()


def test_a_damaged_generalist_that_was_refused_is_not_what_comes_again(tmp_path):
    room = Room(tmp_path / "room", goal=1)
    devices = grown(room, 1.0, 2.0, 50.0)
    for device in devices[:2]:
        refuse(room, device)  # generalist 3 is generalist 1
    changed(generalist(room, 3))
    room.crash()
    assert room.value() == 1.0
    room.fleet.database.close()


def test_where_no_generalist_is_left_rounds_wait_for_one_that_is_put_back(tmp_path):
    room = Room(tmp_path / "room", goal=1)
    device = grown(room, 1.0)[0]
    path = generalist(room, 0)
    data = path.read_bytes()
    gone(path)
    room.crash()
    room.step((device, arrays(0.5)))
    assert room.chain.newest_number == 0
    path.write_bytes(data)
    room.crash()
    room.publish()
    assert room.value() == 1.5
    room.fleet.database.close()


def test_nothing_is_written_behind_a_payload_that_is_complete(room):
    device = room.join()
    room.step((device, arrays(1.0)))
    room.join()
    room.commit(device, arrays(2.0))
    sha256 = room.fleet.database.value("SELECT sha256 FROM updates WHERE round = 1")
    size = room.fleet.payloads.path(sha256).stat().st_size
    for _ in range(3):
        with pytest.raises(Refused, match="complete"):
            room.fleet.payloads.append(device.id, sha256, size, b"more")
    assert list(room.fleet.payloads.uploads.iterdir()) == []


# Clocks ---------------------------------------------------------------------------------------------------------------


class Hands:
    """A clock on the wall, which can be set, and one that nobody can set."""

    def __init__(self):
        self.wall = self.steady = 1e9

    def pass_by(self, seconds):
        self.wall += seconds
        self.steady += seconds


YEAR = 365 * 86400.0


@pytest.mark.parametrize("step", [-YEAR, -3600.0, 3600.0, YEAR])
def test_a_clock_that_is_set_moves_no_deadline_and_ends_no_invitation(tmp_path, step):
    room, hands = Room(tmp_path / "room", deadline_seconds=100.0), Hands()
    room.fleet.database.close()
    clock = Clock(lambda: hands.wall, lambda: hands.steady)
    room.start(clock)
    first = room.join()
    room.join()
    room.step((first, arrays(1.0)))
    room.commit(first, arrays(1.0))
    code = room.code()
    hands.pass_by(40.0)
    hands.wall += step
    room.fleet.follow_clock()
    assert clock() == hands.wall
    assert room.fleet.active == 2
    assert not room.fleet.close_if_complete()
    hands.pass_by(50.0)
    assert not room.fleet.close_if_complete()
    hands.pass_by(20.0)
    assert room.fleet.close_if_complete()
    room.join(code=code)
    assert room.fleet.database.value("SELECT min(last_contact) FROM devices") == pytest.approx(hands.wall, abs=200)
    code = room.code()
    hands.pass_by(86401.0)
    refused("expired_code", room.join, code=code)
    room.fleet.database.close()


def test_what_a_clock_that_was_ahead_left_counts_from_the_next_start(tmp_path):
    room = Room(tmp_path / "room", deadline_seconds=100.0, active_seconds=1000.0)
    room.now += YEAR
    first = room.join()
    room.join()
    room.step((first, arrays(1.0)))
    room.commit(first, arrays(1.0))
    code = room.code()
    room.now -= YEAR
    room.crash()
    assert not room.fleet.close_if_complete()
    room.now += 101.0
    assert room.fleet.close_if_complete()
    room.now += 1000.0
    assert room.fleet.active == 0
    room.now += 86400.0
    refused("expired_code", room.join, code=code)
    room.fleet.database.close()


# The ledger -----------------------------------------------------------------------------------------------------------


def test_no_other_program_reads_a_ledger_that_is_in_use(room):
    with (
        closing(sqlite3.connect(room.fleet.database.path, timeout=0)) as other,
        pytest.raises(sqlite3.OperationalError, match="lock"),
    ):
        other.execute("SELECT count(*) FROM devices")
    room.join()


@pytest.mark.parametrize("statement", ["BEGIN; SELECT count(*) FROM facts", "BEGIN IMMEDIATE"])
def test_a_ledger_that_another_program_holds_is_said_in_one_sentence(tmp_path, statement):
    Database(tmp_path / "coordinator.db").close()
    with closing(sqlite3.connect(tmp_path / "coordinator.db", isolation_level=None)) as other:
        for part in statement.split(";"):
            list(other.execute(part))
        with pytest.raises(CoordinatorError, match="another program has"):
            Database(tmp_path / "coordinator.db")
    Database(tmp_path / "coordinator.db").close()


# Restored -------------------------------------------------------------------------------------------------------------


def test_a_restored_ledger_says_so_once_and_ends_invitations_that_may_be_used(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    room = Room(tmp_path / "room", goal=1)
    device = grown(room, 1.0, 2.0)[0]
    code = room.code()
    assert room.fleet.state(device).restored is None
    room.fleet.database.set_fact("backup", "1")
    room.crash()
    signed = room.fleet.state(device).restored
    note = keys.open_restoration(signed, room.chain.signing_key)
    newest = room.chain.newest
    assert (note.fleet, note.round, note.manifest_hash) == (room.fleet.id, 1, keys.chain_hash(newest))
    assert "restored from a backup" in caplog.text
    refused("unknown_code", room.join, code=code)
    room.crash()
    assert room.fleet.state(device).restored == signed
    room.now -= YEAR
    room.crash()
    assert room.fleet.restore().number > note.number
    room.fleet.database.close()


def test_a_copy_that_is_put_back_twice_within_a_second_is_followed_twice(tmp_path):
    room = Room(tmp_path / "room", goal=1)
    grown(room, 1.0)
    room.crash()
    shutil.copytree(tmp_path / "room", tmp_path / "copy")
    first = room.fleet.restore().number
    room.fleet.database.close()
    shutil.rmtree(tmp_path / "room")
    shutil.copytree(tmp_path / "copy", tmp_path / "room")
    room.now += 0.3
    room.crash()
    assert room.fleet.restore().number > first
    room.fleet.database.close()
