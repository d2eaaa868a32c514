"""A coordinator in a process of its own whose files are damaged while it runs and while it does not."""

import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from comigs_edge.fleet.client import RemoteRefused
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.home.folder import Home
from coordinator.protocol import keys
from tests import warm
from tests.coordinator.ledger.test_damage import changed, damages, gone
from tests.coordinator.rig import Coordinator, Member, random_arrays


@pytest.fixture
def fleet(tmp_path):
    """A coordinator and two devices, one of which has an update in the open round."""
    coordinator = Coordinator(tmp_path / "data")
    first, second = (Member(coordinator.invite(name)) for name in ("kitchen-pi", "attic-pi"))
    first.push(random_arrays(1))
    coordinator.until(lambda status: status["newest_round"] == 0)
    first.push(random_arrays(2))
    yield coordinator, first, second
    if coordinator.process.poll() is None:
        coordinator.kill()


def newest(member):
    return keys.open_manifest(member.remote.state().newest, member.joined.signing_key)


def log(coordinator):
    return Path(coordinator.log.name).read_text()


@damages
def test_a_running_coordinator_names_a_damaged_update_and_goes_on(fleet, damage, tmp_path):
    coordinator, first, second = fleet
    (update,) = [path for path in (coordinator.data / "payloads").iterdir() if path.name != newest(first).sha256]
    damage(update)
    second.push(random_arrays(3))
    status = coordinator.until(lambda status: status["newest_round"] == 1)
    assert status["lost"] == ["the update of kitchen-pi in round 1"]
    assert "the update of kitchen-pi in round 1 is damaged or gone" in log(coordinator)
    first.push(random_arrays(4))
    second.push(random_arrays(5))
    coordinator.until(lambda status: status["newest_round"] == 2)
    second.pull(tmp_path, at_least=2)
    assert coordinator.stop() == 0


@damages
def test_a_running_coordinator_goes_on_without_its_newest_generalist(fleet, damage, tmp_path):
    coordinator, first, second = fleet
    second.push(random_arrays(3))
    coordinator.until(lambda status: status["newest_round"] == 1)
    damage(coordinator.data / "payloads" / newest(first).sha256)
    gone(coordinator.data / "payloads" / newest(first).change_sha256)  # else it is made again
    first.push(random_arrays(4))
    second.push(random_arrays(5))
    status = coordinator.until(lambda status: status["newest_round"] == 2)
    assert status["lost"] == ["generalist 1"]
    assert second.pull(tmp_path, at_least=2)[0] == 2
    coordinator.kill()
    coordinator.restart()
    assert newest(first).round == 2


def test_a_key_that_is_gone_stops_a_start_with_one_sentence(fleet):
    coordinator, first, _ = fleet
    assert coordinator.stop() == 0
    key = coordinator.data / "keys" / "signing.key"
    kept = key.read_bytes()
    gone(key)
    with pytest.raises(RuntimeError, match="restore keys/ from a backup"):
        coordinator.restart()
    assert not key.exists()
    key.write_bytes(kept)
    key.chmod(0o600)
    coordinator.restart()
    assert newest(first).round == 0


def test_a_reader_of_the_ledger_is_kept_out_and_ends_nothing(fleet):
    coordinator, _, second = fleet
    with closing(sqlite3.connect(coordinator.data / "coordinator.db", timeout=0)) as other:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("SELECT count(*) FROM devices")
        second.push(random_arrays(3))
    coordinator.until(lambda status: status["newest_round"] == 1)


def test_a_member_cannot_write_behind_its_complete_update(fleet):
    coordinator, first, _ = fleet
    payload = first.encoded(random_arrays(2), 0)
    sha256 = first.remote.upload(payload)
    headers = {"Upload-Offset": str(len(payload)), "Content-Type": "application/offset+octet-stream"}
    for _ in range(3):
        with pytest.raises(RemoteRefused, match="complete"):
            first.remote.call("PATCH", f"/v1/uploads/{sha256}", b"more", headers)
    assert list((coordinator.data / "uploads").iterdir()) == []


def test_a_restored_backup_tells_its_devices(fleet, tmp_path):
    coordinator, first, second = fleet
    coordinator.command("backup", str(tmp_path / "x.tar"))
    link = coordinator.invite("late-pi")
    second.push(random_arrays(3))
    coordinator.until(lambda status: status["newest_round"] == 1)
    coordinator.kill()
    (tmp_path / "copy").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "x.tar", "-C", tmp_path / "copy"], check=True)
    copy = Coordinator(tmp_path / "copy", port=coordinator.port)
    try:
        note = keys.open_restoration(first.remote.state().restored, first.joined.signing_key)
        assert (note.round, note.manifest_hash) == (0, keys.chain_hash(first.remote.state().newest))
        with pytest.raises(RemoteRefused, match="not known"):
            Member(link)
        again = copy.command("restored")
        assert again["number"] > note.number
        assert keys.open_restoration(second.remote.state().restored, second.joined.signing_key).number == again["number"]
    finally:
        copy.kill()


def check(data, *options):
    return warm.run(["-m", "coordinator", "check", "--data", data, *options], capture_output=True, text=True)


def test_check_says_what_is_damaged_and_repair_mends_it(fleet):
    coordinator, _, _ = fleet
    running = check(coordinator.data)
    assert running.returncode == 0, running
    assert coordinator.stop() == 0
    assert check(coordinator.data).returncode == 0
    (update,) = [path for path in (coordinator.data / "payloads").iterdir() if path.name != newest_of(coordinator)]
    changed(update)
    before = (coordinator.data / "coordinator.db").read_bytes()
    found = check(coordinator.data)
    assert (found.returncode, "kitchen-pi" in found.stdout) == (1, True), found
    assert (coordinator.data / "coordinator.db").read_bytes() == before
    assert check(coordinator.data, "--repair").returncode == 0
    after = check(coordinator.data)
    assert (after.returncode, "lost" in after.stdout) == (0, True), after


def newest_of(coordinator):
    with closing(sqlite3.connect(coordinator.data / "coordinator.db")) as ledger:
        return ledger.execute("SELECT sha256 FROM rounds WHERE published IS NOT NULL ORDER BY number DESC").fetchone()[0]


def test_repair_recovers_what_can_be_read_of_a_damaged_ledger(fleet):
    coordinator, first, second = fleet
    for seed in range(3, 40, 2):
        second.push(random_arrays(seed))
        coordinator.until(lambda status: status["updates"] == 0)
        first.push(random_arrays(seed + 1))
    assert coordinator.stop() == 0
    ledger = coordinator.data / "coordinator.db"
    with closing(sqlite3.connect(ledger)) as database:
        root = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'updates_by_payload'").fetchone()[0]
    data = bytearray(ledger.read_bytes())
    data[(root - 1) * 4096 : root * 4096] = b"\xff" * 4096
    ledger.write_bytes(data)
    with pytest.raises(RuntimeError, match="check --repair"):
        coordinator.restart()
    assert check(coordinator.data).returncode == 1
    found = check(coordinator.data, "--repair")
    assert found.returncode == 0, found
    assert (coordinator.data / "coordinator.damaged.db").exists()
    coordinator.restart()
    assert {row["name"] for row in coordinator.command("devices")["devices"]} == {"kitchen-pi", "attic-pi"}
    second.push(random_arrays(100))


def emptied(folder):
    for path in folder.iterdir():
        path.write_bytes(b"")


def grow(fleet, rounds):
    """The fixture's fleet with this many generalists behind the first one."""
    coordinator, first, second = fleet
    for number in range(1, rounds + 1):
        second.push(random_arrays(10 * number))
        coordinator.until(lambda status, number=number: status["newest_round"] == number)
        first.push(random_arrays(10 * number + 1))


@pytest.mark.parametrize("damage", [shutil.rmtree, emptied])
def test_where_no_generalist_is_left_the_owner_is_told_and_a_device_s_copy_brings_it_back(fleet, damage, tmp_path):
    coordinator, first, second = fleet
    grow(fleet, 2)
    second.pull(tmp_path, at_least=2)
    assert coordinator.stop() == 0
    damage(coordinator.data / "payloads")
    for options in ((), ("--repair",), ()):
        found = check(coordinator.data, *options)
        assert found.returncode == 1, found
        assert "needed     no generalist is left, and devices wait for generalist 2: put payloads/ back" in found.stdout
        assert "is sound" not in found.stdout
    assert "restore a backup" in found.stdout
    coordinator.restart()
    (sentence,) = coordinator.ask("status")["notes"]
    assert sentence in log(coordinator)
    kept, target = re.search(r"copy (\S+) from .* to (\S+), and start again", sentence).groups()
    home = Home(tmp_path / "home")
    assert FleetFolder(home).generalist_path(2) == home.root / kept
    assert coordinator.stop() == 0
    shutil.copy(tmp_path / f"{second.id}-2", target)
    assert check(coordinator.data).returncode == 0
    coordinator.restart()
    assert coordinator.ask("status")["notes"] == []
    second.push(random_arrays(3))
    first.push(random_arrays(4))
    coordinator.until(lambda status: status["newest_round"] == 3)
    assert first.pull(tmp_path, at_least=3)[0] == 3


def test_a_running_coordinator_whose_generalists_vanish_says_so_in_its_status(fleet):
    coordinator, _, _ = fleet
    shutil.rmtree(coordinator.data / "payloads")
    (note,) = coordinator.ask("status")["notes"]
    assert "no generalist is left, and devices wait for generalist 0" in note


@pytest.mark.parametrize("number", [1, 2])
def test_what_repair_makes_again_is_said_once_and_not_called_left_out(fleet, number):
    coordinator, _, _ = fleet
    grow(fleet, 2)
    assert coordinator.stop() == 0
    with closing(sqlite3.connect(coordinator.data / "coordinator.db")) as ledger:
        (sha256,) = ledger.execute("SELECT sha256 FROM rounds WHERE number = ?", (number,)).fetchone()
    (coordinator.data / "payloads" / sha256).write_bytes(b"")
    found = check(coordinator.data, "--repair")
    assert (found.returncode, found.stderr) == (0, ""), found
    assert found.stdout.splitlines() == [
        f"repaired   generalist {number} is damaged or gone: it was made again",
        "everything that is kept is sound",
        "",
        f"next: comigs-coordinator status --data {coordinator.data}",
    ]


@pytest.mark.parametrize("data", [lambda ledger: ledger[:6000], lambda ledger: bytes(len(ledger)), lambda ledger: b"\xff" * 40])
def test_of_a_ledger_that_no_repair_helps_every_command_says_that_a_backup_does(fleet, data):
    coordinator, _, _ = fleet
    assert coordinator.stop() == 0
    ledger = coordinator.data / "coordinator.db"
    ledger.write_bytes(data(ledger.read_bytes()))
    with pytest.raises(RuntimeError, match="too little of it can be read; restore a backup") as started:
        coordinator.restart()
    assert "Traceback" not in str(started.value)
    for options in ((), ("--repair",)):
        found = check(coordinator.data, *options)
        assert (found.returncode, "too little of it can be read; restore a backup" in found.stderr) == (1, True), found
