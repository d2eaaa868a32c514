"""A ledger in whose pages and values bytes were changed: never a traceback, never called sound, and mended or referred to a backup."""

import contextlib
import re
import shutil
import sqlite3
import time
from contextlib import closing

import pytest

from coordinator.ledger.check import check_folder
from coordinator.ledger.checksums import KEYS
from coordinator.ledger.folder import Folder
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError
from tests.coordinator.ledger.test_chain import grown, refuse
from tests.coordinator.ledger.test_fleet import Room, arrays

PAGE = 4096


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with everything that a ledger can hold: five generalists, one of them turned back, and an open round."""
    room = Room(tmp_path_factory.mktemp("flips") / "room", goal=1, now=time.time() - 1000)
    devices = grown(room, 1.0, 2.0, 50.0)
    for device in devices[:2]:
        refuse(room, device)
    room.step((devices[1], arrays(1.0)), update_id="b1", loss=2.5)
    room.fleet.config = room.config.with_values({"goal": 3})
    room.commit(devices[0], arrays(1.0), update_id="a1")
    room.code("attic-pi")
    room.fleet.database.set_fact("address", "https://pi.local:8443")
    room.fleet.restore()
    room.members.revoke(devices[2].name)
    room.code()
    room.fleet.database.close()
    return room.root


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


def look(folder, before):
    """Checks, starts, repairs; returns the sentences of the check. Whatever is damaged, each does so or says one sentence."""
    try:
        found = check_folder(folder, repair=False)["damaged"]
    except CoordinatorError as error:
        found = [str(error)]
        assert "backup" in found[0] or "newer comigs-coordinator" in found[0], found
    assert found or content(folder) == before
    assert all(sentence.isprintable() for sentence in found), found
    try:
        start(folder)
        assert not found or content(folder) == before, found
    except CoordinatorError as error:
        assert found and re.search("check --repair|backup|newer", str(error)), error
    try:
        repaired = check_folder(folder, repair=True)
        assert repaired["damaged"] == [], repaired
        assert start(folder)
    except CoordinatorError as error:
        assert re.search("backup|newer", str(error)), error
        assert "check --repair" not in str(error)
    return found


def places(folder):
    """Every 16 bytes of every page that is not a free one's zeros."""
    data = (folder / "coordinator.db").read_bytes()
    return [at for at in range(0, len(data), 16) if any(data[at : at + 16])]


def test_sixteen_bytes_changed_on_any_page_are_never_a_traceback_and_never_sound(whole, tmp_path):
    before = content(whole)
    for place in places(whole)[:: 41]:
        shutil.rmtree(tmp_path / "room", ignore_errors=True)
        folder = shutil.copytree(whole, tmp_path / "room")
        flip(folder, place)
        look(folder, before)


def test_a_text_changed_in_any_column_of_any_table_is_named(whole, tmp_path):
    before, seen = content(whole), set()
    data = (whole / "coordinator.db").read_bytes()
    for table, values in before.items():
        for row in values:
            for column, text in enumerate(row):
                if not isinstance(text, bytes) or len(text) < 4:
                    continue
                for found in re.finditer(re.escape(text), data):  # in the row, in an index, in the page that a row has left
                    shutil.rmtree(tmp_path / "room", ignore_errors=True)
                    folder = shutil.copytree(whole, tmp_path / "room")
                    flip(folder, found.start() + len(text) // 2, 2)
                    if content(folder) != before:
                        seen.add((table, column))
                        assert any("row of" in sentence or "damaged" in sentence for sentence in look(folder, before))
                        break
    assert {table for table, _ in seen} == {"facts", "invitations", "devices", "rounds", "updates", "refusals"}
    assert len(seen) >= 15, sorted(seen)
