"""A ledger in which bytes were changed: never a traceback, never called sound, and mended or referred to a backup."""

import contextlib
import re
import shutil
import sqlite3
import time
from contextlib import closing
from typing import NamedTuple

import pytest

from coordinator.ledger.check import check_folder
from coordinator.ledger.checksums import KEYS
from coordinator.ledger.folder import Folder
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError
from tests.coordinator.ledger.test_chain import grown, refuse
from tests.coordinator.ledger.test_fleet import Room, arrays

BACKUP = re.compile("backup|newer comigs-coordinator")


class Look(NamedTuple):
    """What the check said of a damaged folder, and whether a repair made it whole."""

    found: list[str]
    is_mended: bool


def build(root):
    """A folder with everything that a ledger can hold: five generalists, one of them turned back, and an open round."""
    room = Room(root, goal=1, now=time.time() - 1000)
    devices = grown(room, 1.0, 2.0, 50.0)
    for device in devices[:2]:
        refuse(room, device)
    room.step((devices[1], arrays(1.0)), update_id="b1", loss=2.5)
    room.fleet.config = room.config.with_values({"goal": 3})
    room.commit(devices[0], arrays(7.0), update_id="a1")
    room.code("attic-pi")
    room.fleet.database.set_fact("address", "https://pi.local:8443")
    room.fleet.restore()
    room.members.revoke(devices[2].name)
    room.code()
    room.fleet.database.close()
    return room.root


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return build(tmp_path_factory.mktemp("flips") / "room")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "room")


def content(folder):
    """What stands in the tables, read by SQLite alone; None where that fails."""
    with closing(sqlite3.connect(folder / "coordinator.db")) as database:
        database.text_factory = bytes
        with contextlib.suppress(sqlite3.DatabaseError):
            return {table: sorted(database.execute(f"SELECT * FROM {table}"), key=repr) for table in KEYS}


def flip(folder, at, count=16):
    path = folder / "coordinator.db"
    data = bytearray(path.read_bytes())
    data[at : at + count] = bytes(byte ^ 0xFF for byte in data[at : at + count])
    path.write_bytes(data)


def start(folder):
    with Folder.open(folder) as opened, opened.fleet(time.time) as fleet:
        return [keys.open_manifest(signed, fleet.chain.signing_key).round for signed in fleet.chain.manifests(-1)]


def said(action, *arguments, **options):
    """The result of an action and None, or None and the sentence that it ends with."""
    try:
        return action(*arguments, **options), None
    except CoordinatorError as error:
        return None, str(error)


def look(folder, before):
    """Checks, starts and repairs, each of which may say one sentence."""
    checked, refused = said(check_folder, folder, repair=False)
    found = [refused] if checked is None else checked["damaged"]
    assert refused is None or BACKUP.search(refused), refused
    assert found or content(folder) == before
    assert all(sentence.isprintable() for sentence in found), found
    _, refused = said(start, folder)
    assert content(folder) == before if refused is None else found, refused
    assert refused is None or "check --repair" in refused or BACKUP.search(refused), refused
    advice = refused
    repaired, refused = said(check_folder, folder, repair=True)
    assert advice is None or ("check --repair" in advice) == (repaired is not None), (advice, refused)
    if repaired is None:
        assert BACKUP.search(refused), refused
        assert "check --repair" not in refused
    else:
        assert repaired["damaged"] == [], repaired
        assert start(folder)
    return Look(found, repaired is not None)


def places(folder):
    """Every 16 bytes of every page that is not a free one's zeros."""
    data = (folder / "coordinator.db").read_bytes()
    return [at for at in range(0, len(data), 16) if any(data[at : at + 16])]


def test_sixteen_bytes_changed_on_any_page_are_never_a_traceback_and_never_sound(whole, tmp_path):
    before = content(whole)
    for place in places(whole)[::83]:
        shutil.rmtree(tmp_path / "room", ignore_errors=True)
        folder = shutil.copytree(whole, tmp_path / "room")
        flip(folder, place)
        look(folder, before)


@pytest.mark.parametrize("place", range(0, 112, 16))
def test_a_changed_header_of_the_ledger_is_named_as_damage(whole, folder, place):
    flip(folder, place)
    look(folder, content(whole))


def test_a_text_changed_in_any_column_of_any_table_is_named(whole, tmp_path):
    before, seen = content(whole), set()
    data = (whole / "coordinator.db").read_bytes()
    for table, values in before.items():
        for row in values:
            for column, text in enumerate(row):
                if not isinstance(text, bytes) or len(text) < 4 or (table, column) in seen:
                    continue
                for found in re.finditer(re.escape(text), data):  # in the row, in an index, in the page that a row has left
                    shutil.rmtree(tmp_path / "room", ignore_errors=True)
                    folder = shutil.copytree(whole, tmp_path / "room")
                    flip(folder, found.start() + len(text) // 2, 2)
                    if content(folder) != before:
                        seen.add((table, column))
                        assert any("row of" in sentence for sentence in look(folder, before).found)
                        break
    assert {table for table, _ in seen} == {"facts", "invitations", "devices", "rounds", "updates", "refusals"}
    assert len(seen) >= 15, sorted(seen)


def flip_text(folder, query, part=""):
    """Changes the middle of the text that the query finds, or a part of it, wherever it stands: in rows and in indexes."""
    path = folder / "coordinator.db"
    with closing(sqlite3.connect(path)) as database:
        (text,) = database.execute(query).fetchone()
    start = text.index(part) if part else len(text) // 2
    for found in re.finditer(re.escape(text.encode()), path.read_bytes()):
        flip(folder, found.start() + start, min(16, len(text) - start))


def manifests(folder):
    with Folder.open(folder) as opened, opened.fleet(time.time) as fleet:
        return fleet.chain.manifests(-1)


@pytest.mark.parametrize("column", ["manifest", "signature", "sha256"])
@pytest.mark.parametrize("number", range(5))
def test_a_damaged_link_is_made_again_with_the_same_bits(whole, folder, number, column):
    before = manifests(folder)
    flip_text(folder, f"SELECT {column} FROM rounds WHERE number = {number}")
    with pytest.raises(CoordinatorError, match=r"row of round \d is not what was written.*check --repair"):
        start(folder)
    repaired = check_folder(folder, repair=True)
    assert (repaired["damaged"], repaired["lost"]) == ([], [])
    assert manifests(folder) == before


def test_who_joined_at_a_link_that_is_lost_reads_the_one_that_is_the_newest_then(folder):
    room = Room(folder, goal=1, now=time.time())
    late, newest = room.join(), room.chain.newest_number
    room.fleet.database.close()
    for column in ("manifest", "sha256"):  # neither says any more what the other was
        flip_text(folder, f"SELECT {column} FROM rounds WHERE number = {newest}")
    assert check_folder(folder, repair=True)["damaged"] == []
    room.start()
    assert room.chain.newest_number == newest - 1
    assert room.fleet.may_read(room.members.member(late.id), newest - 1)
    assert not room.fleet.may_read(room.members.member(late.id), newest - 2)
    room.fleet.database.close()


def test_what_the_fleet_trains_stands_nowhere_else_so_only_a_backup_helps(folder):
    flip_text(folder, "SELECT value FROM facts WHERE name = 'generalist'", "4.0")
    data = (folder / "coordinator.db").read_bytes()
    for repair in (False, True):
        with pytest.raises(CoordinatorError, match=r"fact generalist is not what was written.*restore a backup: mkdir"):
            check_folder(folder, repair)
    assert (folder / "coordinator.db").read_bytes() == data


def test_a_ledger_that_has_lost_what_the_fleet_trains_without_a_trace_is_referred_to_a_backup(folder):
    with closing(sqlite3.connect(folder / "coordinator.db")) as database, database:
        database.execute("DELETE FROM facts WHERE name = 'generalist'")
        database.execute("DELETE FROM checksums WHERE row = 'generalist'")
    flip_text(folder, "SELECT manifest FROM rounds WHERE number = 1")
    for repair in (False, True):
        with pytest.raises(CoordinatorError, match="too little of it can be read; restore a backup"):
            check_folder(folder, repair)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_of_a_ledger_that_was_cut_check_says_at_once_whether_a_repair_or_a_backup_helps(folder, share):
    path = folder / "coordinator.db"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    checked, refused = said(check_folder, folder, repair=False)
    repaired, refused_too = said(check_folder, folder, repair=True)
    assert (checked is None) == (repaired is None)
    if checked is None:
        assert BACKUP.search(refused), refused
        assert refused == refused_too == said(start, folder)[1]
    else:
        assert "is damaged" in checked["damaged"][0]
        assert repaired["damaged"] == []
        with Folder.open(folder) as opened, opened.fleet(time.time) as fleet:
            assert fleet.state(next(iter(fleet.members.devices.values()))).restored is not None


def test_a_device_whose_key_was_changed_is_shut_out_and_the_others_stay(folder):
    flip_text(folder, "SELECT public_key FROM devices WHERE name = 'device-1'")
    repaired = check_folder(folder, repair=True)
    assert any(
        "device-1 is not what was written: it was left out; invite the device again" in each for each in repaired["repaired"]
    )
    with Folder.open(folder) as opened, opened.fleet(time.time) as fleet:
        assert sorted(device.name for device in fleet.members.devices.values()) == ["device-2", "device-3"]


def test_a_changed_update_of_the_open_round_comes_again(folder):
    flip_text(folder, "SELECT sha256 FROM updates ORDER BY round DESC")
    assert check_folder(folder, repair=True)["damaged"] == []
    with Folder.open(folder) as opened, opened.fleet(time.time) as fleet:
        first = next(device for device in fleet.members.devices.values() if device.name == "device-1")
        assert "a1" not in fleet.state(first).counted
        assert not fleet.state(first).has_contributed


def test_unfinished_uploads_that_nobody_will_finish_are_named_and_removed(folder):
    with Folder.open(folder) as opened, opened.fleet(time.time) as fleet:
        member = next(device.id for device in fleet.members.devices.values() if device.revoked is None)
        limit = fleet.upload_limit()
    sound, long, foreign = (f"{device}-{kind * 64}" for device, kind in ((member, "a"), (member, "b"), ("c" * 32, "c")))
    for name, size in ((sound, 100), (long, 10 * limit), (foreign, 10)):
        (folder / "uploads" / name).write_bytes(bytes(size))
    found = check_folder(folder, repair=False)["damaged"]
    assert [any(name in sentence for sentence in found) for name in (sound, long, foreign)] == [False, True, True]
    assert check_folder(folder, repair=True)["damaged"] == []
    assert [path.name for path in (folder / "uploads").iterdir()] == [sound]
