"""Ledgers of earlier versions are taken over, and what they counted still counts once."""

import sqlite3

import numpy as np
import pytest

from coordinator.ledger import checksums, damage, database
from coordinator.ledger.database import Database
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import Refusal
from tests.coordinator.ledger.test_fleet import Room, arrays, refused

OLD = "device, round, sha256, trained_from, weight, tokens, size, format, averaging, validation_loss, received"


def schema(database):
    rows = database.rows("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return sorted(tuple(row.values()) for row in rows)


def make_old(room, version=1):
    """Gives the ledger the form that it had at a schema version."""
    db, path = room.fleet.database, room.root / "old.db"
    rows = db.rows(f"SELECT {OLD} FROM updates")
    db.close()
    with sqlite3.connect(path) as old:
        old.executescript("".join(database.MIGRATIONS[:version]))
        old.execute("ATTACH ? AS new", (str(db.path),))
        for (table,) in old.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
            names = ", ".join(row[1] for row in old.execute(f"PRAGMA main.table_info({table})"))
            old.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM new.{table}")
        old.execute(f"PRAGMA user_version={version}")
    path.replace(db.path)
    return rows


@pytest.fixture
def room(tmp_path):
    room = Room(tmp_path / "room")
    yield room
    room.fleet.database.close()


def test_a_ledger_from_before_update_ids_is_taken_over_whole(room, tmp_path):
    first, second = room.join(), room.join()
    room.step((first, arrays(0.0)))
    receipt = room.commit(first, arrays(1.0), loss=2.5)
    rows = make_old(room)
    fresh = Database(tmp_path / "fresh.db")
    room.crash()
    assert schema(room.fleet.database) == schema(fresh)
    assert room.fleet.database.rows(f"SELECT {OLD} FROM updates WHERE update_id IS NULL") == rows
    assert room.fleet.state(first).counted == []
    assert room.commit(first, arrays(1.0)) == receipt
    refused("already_counted", room.commit, first, arrays(2.0), update_id="0a")
    room.step((second, arrays(3.0)), update_id="0b")
    assert room.value() == np.float32(2.0)
    assert room.fleet.state(second).counted == ["0b"]


def test_a_ledger_from_before_norms_keeps_refusals_and_learns_who_joined_when(room, tmp_path):
    first = room.join()
    room.now += 1
    room.step((first, arrays(0.0)))
    room.step((first, arrays(1.0)))
    room.now += 1
    second = room.join()
    room.now += 1
    room.step((first, arrays(2.0)), (second, arrays(2.0)))
    room.fleet.refuse(first, Refusal(round=2, loss_before=2.0, loss_after=3.0))
    make_old(room, version=2)
    fresh = Database(tmp_path / "fresh.db")
    room.crash()
    db = room.fleet.database
    assert schema(room.fleet.database) == schema(fresh)
    assert db.rows("SELECT * FROM refusals") == [{"device": first.id, "round": 2, "loss_before": 2.0, "loss_after": 3.0}]
    assert {row["id"]: row["joined_at"] for row in db.rows("SELECT id, joined_at FROM devices")} == {first.id: -1, second.id: 1}


def test_before_a_ledger_is_taken_over_a_copy_of_it_is_kept(room):
    room.step((room.join(), arrays(0.0)))
    rows = make_old(room)
    room.crash()
    with sqlite3.connect(room.root / "coordinator.before-2.db") as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (1,)
        assert copy.execute(f"SELECT {OLD} FROM updates").fetchall() == [tuple(row.values()) for row in rows]


def test_a_ledger_of_a_newer_version_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "coordinator.db") as connection:
        connection.execute(f"PRAGMA user_version={len(database.MIGRATIONS) + 1}")
    with pytest.raises(CoordinatorError, match="newer comigs-coordinator"):
        Database(tmp_path / "coordinator.db")


def test_what_was_lost_is_found_without_reading_every_row_also_in_an_older_ledger(room):
    device = room.join()
    room.step((device, arrays(0.0)))
    room.step((device, arrays(1.0)))
    for name in ("updates_lost", "rounds_lost"):  # as a program from before the indices leaves it
        room.fleet.database.run(f"DROP INDEX {name}")
    checksums.accept_schema(room.fleet.database._db)
    room.crash()
    db = room.fleet.database
    for table in ("updates", "rounds"):
        plan = db.rows(f"EXPLAIN QUERY PLAN SELECT * FROM {table} WHERE lost IS NOT NULL")
        assert f"{table}_lost" in plan[0]["detail"]
    assert damage.lost(db) == []
    db.run("UPDATE updates SET lost = 'gone' WHERE round = 1")
    assert damage.lost(db) == ["the update of device-1 in round 1"]
    room.crash()  # the schema is what was written
    assert room.fleet.database.changed() == []


def test_a_row_that_is_gone_is_found_beside_one_that_nobody_wrote(room):
    device = room.join()
    room.step((device, arrays(0.0)))
    room.step((device, arrays(1.0)))
    room.fleet.database.close()
    with sqlite3.connect(room.fleet.database.path) as other:  # no checksums are written
        other.execute("UPDATE updates SET round = 7 WHERE round = 1")
    other.close()
    db = Database(room.fleet.database.path)
    assert {(row.table, row.key, row.state) for row in db.changed()} == {
        ("updates", f"{device.id} 1", "gone"), ("updates", f"{device.id} 7", "unknown"),
    }  # fmt: skip
    db.close()
