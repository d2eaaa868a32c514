"""What the owner can do, with a coordinator that runs and without one."""

import json
import os
import shutil
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from coordinator import admin
from coordinator.__main__ import main
from coordinator.ledger.folder import Folder
from coordinator.protocol.errors import CoordinatorError
from tests.coordinator.ledger.test_fleet import Room, arrays
from tests.coordinator.rig import Coordinator, Member, random_arrays
from tests.fleet.killed import is_killed


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    running = Coordinator(tmp_path_factory.mktemp("admin") / "data", update_format="float32")
    yield running
    running.stop()


@pytest.mark.parametrize("operation", ["check", "status"])
def test_a_repair_that_was_killed_in_its_last_step_ends_with_the_next_command(tmp_path, operation):
    room = Room(tmp_path / "data")
    room.step((room.join(), arrays(1.0)))
    room.fleet.database.close()
    ledger = room.root / "coordinator.db"
    shutil.copy(ledger, room.root / "coordinator.recovered.db")
    (room.root / "coordinator.db-journal").write_bytes(b"of the damaged one")
    ledger.replace(room.root / "coordinator.damaged.db")
    found = admin.examine(room.root, False) if operation == "check" else admin.call(room.root, "1", "status")
    assert found["damaged"] == [] if operation == "check" else found["newest_round"] == 0
    assert ledger.exists()
    assert not (room.root / "coordinator.recovered.db").exists()


def test_a_folder_without_a_coordinator_is_told_so(tmp_path):
    with pytest.raises(CoordinatorError, match=r"no coordinator in .*serve --data"):
        admin.call(tmp_path, "1", "status")


@pytest.mark.parametrize(
    ("gone", "operation", "message"),
    [
        (("keys",), "check", r"tls.pem is gone; restore keys/ from a backup"),
        (("keys",), "status", r"tls.pem is gone; restore keys/ from a backup"),
        (("coordinator.db",), "check", r"coordinator.db is gone or empty while .*payloads is not; restore it"),
        (("coordinator.db",), "status", r"coordinator.db is gone or empty while .*payloads is not; restore it"),
        (("coordinator.db", "payloads"), "check", r"coordinator.db is gone; restore a backup"),
        (("keys", "coordinator.db"), "check", r"coordinator.db is gone or empty while"),
        (("keys", "coordinator.db", "payloads"), "check", r"no coordinator in"),
    ],
)
def test_a_command_names_what_of_the_folder_is_gone_and_makes_nothing(tmp_path, gone, operation, message):
    room = Room(tmp_path / "data")
    room.step((room.join(), arrays(1.0)))
    room.fleet.database.close()
    for name in gone:
        path = room.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = sorted(room.root.rglob("*"))
    with pytest.raises(CoordinatorError, match=message):
        admin.examine(room.root, False) if operation == "check" else admin.call(room.root, "1", operation)
    assert [path for path in sorted(room.root.rglob("*")) if path.name != "lock"] == [p for p in before if p.name != "lock"]


@pytest.mark.parametrize(
    "words",
    [
        *(("rounds", "--last", number) for number in ("99999999999999999999", "0", "-1", "x", "9" * 5000, "")),
        *(("revoke", name) for name in ("", " ", "a b", "x" * 65, "--")),
        *(("serve", "--goal", number) for number in ("-1", "99999999999999999999", "nan", "")),
        *(("serve", "--deadline-seconds", number) for number in ("-1", "nan", "inf", "1e400", "")),
        ("serve", "--weights", "nonsense"),
        ("serve", "--port", "65536"),
        ("serve", "--port", "9" * 5000),
        ("status", "--data", ""),
    ],
)
def test_a_value_out_of_bounds_is_wrong_usage(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setenv("COMIGS_COORDINATOR_DATA", str(tmp_path / "data"))
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_without_a_running_coordinator_the_folder_is_used_itself(tmp_path):
    room = Room(tmp_path / "data")
    device = room.join(name="kitchen-pi")
    room.step((device, arrays(1.0)))
    room.fleet.database.close()
    call = lambda *arguments, **options: admin.call(tmp_path / "data", "1", *arguments, **options)  # noqa: E731
    assert call("status")["devices"] == 1
    assert [row["name"] for row in call("devices")["devices"]] == ["kitchen-pi"]
    assert [row["number"] for row in call("rounds", last=1)["rounds"]] == [1]
    with pytest.raises(CoordinatorError, match="address"):
        call("invite")
    link = call("invite", name="attic-pi", address="https://pi:8443")["link"]
    assert link.startswith("https://pi:8443#")
    with pytest.raises(CoordinatorError, match="is no name"):
        call("invite", name="a b", address="https://pi:8443")
    call("revoke", name="kitchen-pi")
    with pytest.raises(CoordinatorError, match="was removed already; to have it back"):
        call("revoke", name="kitchen-pi")
    with pytest.raises(CoordinatorError, match="name another file"):
        admin.backup(tmp_path / "data", "1", tmp_path / "missing" / "x.tar")
    with Folder.open(tmp_path / "data"), pytest.raises(CoordinatorError, match="another coordinator runs"):
        call("status")


def test_a_running_coordinator_answers_through_its_socket(coordinator):
    mode = stat.S_IMODE(os.stat(coordinator.data / admin.SOCKET).st_mode)
    assert mode == 0o600
    assert coordinator.command("status")["fleet"]


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        ("nonsense", {}, "does not know this"),
        ("invite", {"nonsense": 1}, "does not understand"),
        ("revoke", {}, "does not understand"),
        ("rounds", {"last": 10**30}, "does not understand"),
        ("invite", {"name": 3}, "does not understand"),
        ("revoke", {"name": "nobody"}, "no device nobody"),
    ],
)
def test_what_a_running_coordinator_does_not_do_is_one_sentence(coordinator, operation, arguments, message):
    with pytest.raises(CoordinatorError, match=message):
        admin.call(coordinator.data, "1", operation, **arguments)
    assert coordinator.command("status")


def test_a_backup_is_a_coordinator_again(coordinator, tmp_path):
    member = Member(coordinator.invite("backed-up-pi"))
    member.push(random_arrays(0))
    coordinator.until(lambda status: status["newest_round"] >= 0)
    found = coordinator.command("backup", str(tmp_path / "x.tar"))
    assert found["bytes"] == (tmp_path / "x.tar").stat().st_size
    assert stat.S_IMODE((tmp_path / "x.tar").stat().st_mode) == 0o600
    (tmp_path / "copy").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "x.tar", "-C", tmp_path / "copy"], check=True)
    copy = Coordinator(tmp_path / "copy")
    try:
        assert copy.pin == coordinator.pin
        before, after = (each.command("devices")["devices"] for each in (coordinator, copy))
        assert [row["name"] for row in before] == [row["name"] for row in after]
        assert copy.command("status")["newest_round"] == coordinator.command("status")["newest_round"]
    finally:
        copy.stop()


def test_a_backup_needs_room_only_where_it_is_written_and_says_how_much(coordinator, tmp_path):
    member = Member(coordinator.invite())
    member.push(random_arrays(1))
    coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1)
    made = Path(coordinator.ask("backup")["file"])
    held = list((made / "payloads").iterdir())
    assert held
    assert all(path.samefile(coordinator.data / "payloads" / path.name) for path in held)
    shutil.rmtree(made)
    large = coordinator.data / "keys" / "large"
    large.touch()
    os.truncate(large, shutil.disk_usage(tmp_path).free + 10**9)  # without blocks
    try:
        with pytest.raises(CoordinatorError, match=r"x.tar needs [0-9,.]+ MB and [0-9,.]+ MB are free there; make room"):
            admin.backup(coordinator.data, "1", tmp_path / "x.tar")
    finally:
        large.unlink()
    assert list(tmp_path.iterdir()) == []
    assert not list((coordinator.data / "uploads").glob("backup-*"))


KILLED = {
    "backup": lambda root, target: admin.backup(root, "1", target),
    "restored": lambda root, _: admin.call(root, "1", "restored"),
    "invite": lambda root, _: admin.call(root, "1", "invite", address="https://pi:8443"),
    "check": lambda root, _: admin.examine(root, False),
    "repair": lambda root, _: admin.examine(root, True),
}


@pytest.mark.parametrize("command", KILLED)
def test_a_command_killed_anywhere_works_again_and_leaves_nothing_lost_or_lying(tmp_path, command):
    room = Room(tmp_path / "data")
    room.step((room.join(), arrays(1.0)))
    room.fleet.database.close()
    number, is_cut, target = 0, True, tmp_path / "out" / "x.tar"
    target.parent.mkdir()
    shutil.copytree(room.root, tmp_path / "template")
    while is_cut:
        number += 1
        shutil.rmtree(room.root)
        shutil.copytree(tmp_path / "template", room.root)
        is_cut = is_killed(tmp_path, number, lambda: KILLED[command](room.root, target))
        KILLED[command](room.root, target)
        found = admin.examine(room.root, False)
        assert (found["damaged"], admin.call(room.root, "1", "status")["newest_round"]) == ([], 0)
        with Folder.open(room.root) as folder, folder.fleet(time.time):
            assert list((room.root / "uploads").iterdir()) == []
        assert [path.name for path in target.parent.iterdir()] == ["x.tar"] * (command == "backup")
        if command == "backup":
            names = set(subprocess.run(["tar", "-tf", target], check=True, capture_output=True, text=True).stdout.split())
            assert {f"payloads/{path.name}" for path in (room.root / "payloads").iterdir()} | {"coordinator.db"} <= names
    assert number > 2


def test_fifty_devices_with_one_invitation_are_one_device(coordinator):
    """The race of joining, over real connections: exactly one comes in."""
    link, found, start = coordinator.invite(), [], threading.Barrier(50)

    def join():
        start.wait()
        try:
            found.append(Member(link, patience=0.1).joined.name)
        except Exception as error:
            found.append(error)

    before = len(coordinator.command("devices")["devices"])
    threads = [threading.Thread(target=join) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    joined = [name for name in found if isinstance(name, str)]
    refusals = [str(error) for error in found if not isinstance(error, str)]
    assert len(joined) == 1, refusals
    assert all("used already" in text or "too many requests" in text for text in refusals), refusals
    assert len(coordinator.command("devices")["devices"]) == before + 1


def test_a_coordinator_that_is_older_or_odd_is_not_a_traceback(tmp_path):
    """Something else answers on the socket."""
    import http.server
    import socketserver

    room = Room(tmp_path / "data")
    room.fleet.database.close()

    class Odd(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b"500 Internal Server Error")

        def log_message(self, *arguments):
            pass

    with admin.socket_path(tmp_path / "data") as path, socketserver.UnixStreamServer(path, Odd) as server:
        Odd.address_string = lambda self: "local"
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(CoordinatorError, match="did not answer"):
            admin.call(tmp_path / "data", "1", "status")
        thread.join()


def test_times_are_those_of_the_clock(coordinator):
    status = coordinator.command("status")
    assert abs(status["now"] - time.time()) < 60
    assert json.dumps(status)
