"""Files of the coordinator: what is garbage and what is not, short writes, what a crash leaves; the ledger's transactions."""

import errno
import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from coordinator.ledger import payloads as room
from coordinator.ledger.database import Database
from coordinator.ledger.payloads import DiskFailure, Payloads
from coordinator.protocol.errors import Refused

DEVICE = "ab" * 16


@pytest.fixture
def payloads(tmp_path):
    return Payloads(tmp_path)


def brought(payloads, data, device=DEVICE):
    sha256 = hashlib.sha256(data).hexdigest()
    payloads.append(device, sha256, 0, data)
    return sha256


def test_a_payload_that_is_held_is_no_garbage_however_often(payloads):
    sha256 = brought(payloads, b"update")
    with payloads.hold(sha256):
        with payloads.hold(sha256):
            payloads.keep(payloads.finish(DEVICE, sha256, 6), sha256)
        payloads.collect(set(), 0.0)
        assert payloads.path(sha256).read_bytes() == b"update"
    payloads.collect(set(), 0.0)
    assert not payloads.path(sha256).exists()


def test_the_newest_generalist_is_no_garbage_before_the_ledger_knows_it(payloads):
    first = payloads.write([b"one"], 3)
    payloads.collect(set(), 0.0)
    assert payloads.path(first).exists()
    second = payloads.write([b"two"], 3)
    payloads.collect(set(), 0.0)
    assert not payloads.path(first).exists()
    assert payloads.path(second).exists()


def test_what_a_crash_left_among_the_uploads_is_gone_after_a_start(tmp_path, payloads):
    sha256 = brought(payloads, b"begun")
    (payloads.uploads / "generalist").write_bytes(b"half")
    (payloads.uploads / "backup-0123").write_bytes(b"half")
    (payloads.uploads / "tmp_dir").mkdir()
    (payloads.uploads / "tmp_dir" / "coordinator.db").write_bytes(b"half")
    again = Payloads(tmp_path)
    assert [path.name for path in again.uploads.iterdir()] == [f"{DEVICE}-{sha256}"]
    assert again.offset(DEVICE, sha256) == 5


def test_a_write_that_ends_early_goes_on_and_one_that_fails_leaves_nothing(payloads, monkeypatch):
    sha256, calls = hashlib.sha256(b"0123456789").hexdigest(), []

    class Short:
        """A file that takes three bytes at once, and none the third time."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            calls.append(len(data))
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, "full")
            return self.file.write(data[:3])

        def truncate(self, size):
            return self.file.truncate(size)

    write_all = room._write_all
    monkeypatch.setattr(room, "_write_all", lambda file, data, end: write_all(Short(file), data, end))
    with pytest.raises(Refused, match="disk is full"):
        payloads.append(DEVICE, sha256, 0, b"0123456789")
    assert (calls, payloads.offset(DEVICE, sha256)) == ([10, 7, 4], 0)
    assert payloads.append(DEVICE, sha256, 0, b"0123456789") == 10
    assert payloads.finish(DEVICE, sha256, 10).read_bytes() == b"0123456789"


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, Refused), (errno.EIO, DiskFailure)])
def test_a_generalist_that_cannot_be_synced_leaves_no_file(payloads, monkeypatch, code, kind):
    def fails(descriptor):
        raise OSError(code, "fails")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(kind):
        payloads.write([b"generalist"], 10)
    if kind is Refused:
        assert list(payloads.uploads.iterdir()) == []


def test_a_full_disk_in_a_transaction_is_said_as_such_and_the_next_one_goes_well(tmp_path):
    database = Database(tmp_path / "coordinator.db")
    pages = database.value("PRAGMA page_count")
    database.run(f"PRAGMA max_page_count={pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"), database.transaction():
        database.set_fact("large", "x" * 100_000)
    database.run("PRAGMA max_page_count=100000")
    with database.transaction():
        database.set_fact("large", "y")
    assert database.fact("large") == "y"
    database.close()


def test_an_update_is_on_the_disk_before_it_has_its_place_and_the_folder_after(payloads, monkeypatch):
    seen, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(("sync", os.fstat(descriptor).st_ino)), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (seen.append(("move", path.stat().st_ino)), replace(path, to)))
    sha256 = brought(payloads, b"update")
    payloads.keep(payloads.finish(DEVICE, sha256, 6), sha256)
    made = payloads.write([b"general", b"ist"], 10)
    update, generalist, folder = (path.stat().st_ino for path in (payloads.path(sha256), payloads.path(made), payloads.folder))
    assert seen == [
        ("sync", update), ("move", update), ("sync", folder), ("sync", generalist), ("move", generalist), ("sync", folder),
    ]  # fmt: skip


def test_a_device_has_four_unfinished_uploads_at_most_and_old_ones_are_given_up(payloads):
    for number in range(6):
        sha256 = hashlib.sha256(b"%d" % number).hexdigest()
        payloads.append(DEVICE, sha256, 0, b"begun")
        os.utime(payloads.uploads / f"{DEVICE}-{sha256}", (1000.0 + number,) * 2)
    brought(payloads, b"another's", "cd" * 16)
    assert len(list(payloads.uploads.glob(f"{DEVICE}-*"))) == 4
    assert len(list(payloads.uploads.iterdir())) == 5
    payloads.collect(set(), 1003.5 + 7 * 86400)
    assert len(list(payloads.uploads.glob(f"{DEVICE}-*"))) == 2  # those that came 1004 and 1005 seconds after 1970


def test_a_disk_without_room_to_spare_takes_nothing(payloads, monkeypatch):
    monkeypatch.setattr(payloads, "disk", lambda: (10**9, 10**12))
    payloads.check_space(9 * 10**8)
    with pytest.raises(Refused, match="disk is full"):
        payloads.check_space(95 * 10**7)  # fewer than 64 MB would be left
    monkeypatch.setattr(payloads, "disk", lambda: (10**8, 10**9))
    payloads.check_space(49 * 10**6)
    with pytest.raises(Refused, match="disk is full"):
        payloads.check_space(51 * 10**6)  # a twentieth of a small disk
