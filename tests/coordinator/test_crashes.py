"""The coordinator is killed, its power is cut, its disk lies or is full: nothing acknowledged is lost, nothing counts twice.

The long sweeps are benchmarks/torture/; here is a handful of each.
"""

import contextlib
import os
import random
import runpy
import shutil
import sqlite3
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from comigs_edge.fleet.client import RemoteRefused
from comigs_edge.fleet.transport import Offline
from coordinator.protocol.errors import CoordinatorError
from tests.coordinator.audit import Books, Trainer, check, settle
from tests.coordinator.inject import ATTEMPTS, injected, needs_strace
from tests.coordinator.ledger.test_chain import grown, opened, refuse
from tests.coordinator.ledger.test_fleet import Room
from tests.coordinator.rig import Coordinator

TORTURE = Path(__file__).parents[2] / "benchmarks" / "torture"
EX_IOERR = 74
needs_mount = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="wants root")


def script(name):
    return SimpleNamespace(**runpy.run_path(str(TORTURE / f"{name}.py")))


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory):
    """A coordinator with two devices; every test finds it as the one before left it, after a round."""
    made = script("kills").Fleet(tmp_path_factory.mktemp("fleet"), 2)
    yield made
    made.coordinator.kill()


@pytest.fixture
def fleet(long_lived):
    long_lived.problems, long_lived.ready, long_lived.kills = [], [], 0
    return long_lived


@pytest.fixture(scope="module")
def at_rest(tmp_path_factory):
    """The folder of a coordinator that is not running any more."""
    made = script("kills").Fleet(tmp_path_factory.mktemp("rest"), 2)
    made.work()
    made.coordinator.kill()
    return made


def problems(fleet, data=None):
    return check(
        data or fleet.coordinator.data, fleet.books, fleet.trainers[0].member.joined.signing_key,
        {trainer.member.id for trainer in fleet.trainers},
    )  # fmt: skip


# Kills ----------------------------------------------------------------------------------------------------------------


@needs_strace
@pytest.mark.parametrize(
    ("thread", "call", "number"),
    [("main", "fsync,fdatasync", 3), ("main", "pwrite64", 9), ("files", "rename", 1), ("files", "fsync", 2)],
)
def test_a_kill_in_the_middle_of_a_round_loses_nothing(fleet, thread, call, number):
    assert script("kills").kill_at(fleet, thread, call, number)
    assert fleet.problems == []
    assert fleet.ready[0] < 10  # 2 s on a quiet machine: the sweep measures it


def test_a_crash_between_the_last_refusal_and_the_roll_back_is_made_up_for(tmp_path, monkeypatch):
    room = Room(tmp_path / "room", goal=1)
    devices = grown(room, 1.0, 2.0)
    refuse(room, devices[0])
    with monkeypatch.context() as patch:
        patch.setattr(room.chain, "roll_back", lambda *unused: None)  # the power goes here
        refuse(room, devices[1])
    assert room.chain.newest_number == 1
    assert refuse(room, devices[1], 1)["newest"] == 2  # the device had no answer and tells again
    assert opened(room)[2].rolled_back_to == 0
    room.fleet.database.close()


def test_kills_under_load_lose_nothing(fleet):
    script("kills").at_random(fleet, 2, random.Random(3))
    assert (fleet.kills, fleet.problems) == (2, [])


@pytest.mark.parametrize(("statement", "problem"), [
    ("DELETE FROM updates WHERE rowid = (SELECT max(rowid) FROM updates)", "lost"),
    ("INSERT INTO updates (device, round, sha256, trained_from, weight, tokens, size, format, averaging, received, update_id) "
     "SELECT device, (SELECT max(number) FROM rounds), sha256, trained_from + 1, weight, tokens, size, format, averaging, "
     "received, update_id FROM updates LIMIT 1", "doubled"),
    ("UPDATE updates SET weight = weight - 1 WHERE round = 1", "weight"),
    ("UPDATE rounds SET sha256 = (SELECT sha256 FROM rounds WHERE number = 0) WHERE number = 1", "chain"),
    ("UPDATE updates SET weight = weight / 2 WHERE device = (SELECT max(id) FROM devices) AND round = 1", "mean"),
])  # fmt: skip
def test_the_audit_sees_what_is_wrong(at_rest, tmp_path, statement, problem):
    shutil.copytree(at_rest.coordinator.data, tmp_path / "data", ignore=shutil.ignore_patterns("admin.sock"))
    database = sqlite3.connect(tmp_path / "data" / "coordinator.db", isolation_level=None)
    database.execute(statement)
    database.close()
    books = at_rest.books
    at_rest.books = replace(books, published=dict(books.published), counted={}, newest=dict(books.newest))
    found = problems(at_rest, tmp_path / "data")
    at_rest.books = books
    assert any(problem in sentence for sentence in found), found


# Power cuts -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("xfs_io", "mkfs.ext4"))) or not Path("/dev/loop0").exists(),
    reason="wants root, xfsprogs, loop devices",
)
def test_a_power_cut_loses_nothing(tmp_path):
    found = script("power_cuts").sweep(tmp_path / "disk", 1, 5, {})
    assert found["cuts"] == 1
    assert (found["lost"], found["doubled"], found["other_problems"], found["ended_early"]) == (0, 0, [], "")


# Disks that are full --------------------------------------------------------------------------------------------------


@needs_mount
def test_a_full_disk_is_said_and_changes_nothing(tmp_path):
    disk, books = tmp_path / "disk", Books()
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], check=True)
    try:
        coordinator = Coordinator(disk / "data", update_format="float32")
        trainers = [Trainer(coordinator.invite(), books) for _ in range(2)]
        settle(trainers)
        (disk / "filler").write_bytes(bytes(int(shutil.disk_usage(disk).free - 1.1e6)))
        with pytest.raises(RemoteRefused, match=r"disk is full .*your update is kept on your device"):
            trainers[0].step()
        assert "the disk is full: what devices send is refused" in Path(f"{coordinator.data}.log").read_text()
        with contextlib.suppress(OSError), open(disk / "rest", "wb", buffering=0) as rest:
            while True:
                rest.write(bytes(4096))
        for operation, words in (("invite", {"name": "late"}), ("backup", {})):
            with pytest.raises(CoordinatorError, match=r"make room on its disk|No space left"):
                coordinator.ask(operation, **words)
        assert coordinator.process.poll() is None
        (disk / "filler").unlink()
        (disk / "rest").unlink()
        settle(trainers)
        ids = {trainer.member.id for trainer in trainers}
        assert check(coordinator.data, books, trainers[0].member.joined.signing_key, ids) == []
        assert coordinator.stop() == 0
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def met(fleet, thread, call, fault):
    """What a device is told whose update meets the fault."""
    for _ in range(ATTEMPTS):
        with injected(fleet.coordinator.process, thread, call, fault):
            try:
                fleet.trainers[0].step()
            except (Offline, RemoteRefused) as error:
                if "too many requests" not in str(error):
                    return error
        settle(fleet.trainers)
    return None


@needs_strace
@pytest.mark.parametrize(
    ("thread", "call", "error"),
    [("files", "write", "ENOSPC"), ("files", "fsync", "ENOSPC"), ("files", "rename", "ENOSPC"), ("main", "pwrite64", "ENOSPC")],
)
def test_no_space_at_any_place_is_507_and_the_next_attempt_goes_well(fleet, thread, call, error):
    process = fleet.coordinator.process
    assert "disk is full" in str(met(fleet, thread, call, f"error={error}:when=1+"))
    assert process.poll() is None
    settle(fleet.trainers)
    assert problems(fleet) == []


@needs_strace
@pytest.mark.parametrize(
    ("thread", "call"), [("files", "fsync"), ("main", "fdatasync"), ("main", "pwrite64"), ("files", "write")]
)
def test_a_disk_that_fails_ends_the_process_and_nothing_is_acknowledged(fleet, thread, call):
    process = fleet.coordinator.process
    assert isinstance(met(fleet, thread, call, "error=EIO:when=1+"), Offline)
    assert process.wait(5) == EX_IOERR
    assert fleet.trainers[0].pending[1] not in fleet.books.acked
    fleet.after_a_kill("EIO")
    assert fleet.problems == []


def test_an_upload_that_nobody_finishes_makes_room(tmp_path):
    coordinator, books = Coordinator(tmp_path / "data", update_format="float32"), Books()
    trainer = Trainer(coordinator.invite(), books)
    settle([trainer])
    for number in range(6):
        headers = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        trainer.member.remote.call("PATCH", f"/v1/uploads/{number:064x}", b"beginning", headers)
        time.sleep(0.01)
    assert len(list((coordinator.data / "uploads").iterdir())) == 4
    coordinator.kill()
