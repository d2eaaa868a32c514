"""People who are not in the fleet: however many connections they hold, members come in, and the process lives."""

import contextlib
import json
import socket
import sqlite3
import ssl
import time

import pytest

from comigs_edge.fleet.client import Remote
from coordinator.web import door
from coordinator.web.answers import passing_trouble
from tests.coordinator.rig import Coordinator, Member, random_arrays

STRANGER, HOUSEHOLD = "127.0.0.66", "127.0.0.1"  # Linux takes all of 127.0.0.0/8 as its own


def connect(port, address, tls=True):
    """A stranger's connection from this address."""
    found = socket.create_connection(("127.0.0.1", port), 5, source_address=(address, 0))
    if not tls:
        return found
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        return context.wrap_socket(found)
    except OSError:
        found.close()
        raise


def is_open(connection):
    """Whether the coordinator has not closed it."""
    connection.settimeout(0.05)
    try:
        return bool(connection.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def ask(port, address, text):
    """Status and body of the answer to these bytes."""
    with connect(port, address) as line:
        line.sendall(text)
        with line.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            length = next(int(field.split(b":")[1]) for field in answer if field.lower().startswith(b"content-length"))
            while answer.readline().strip():
                pass
            return status, answer.read(length)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    running = Coordinator(tmp_path_factory.mktemp("strangers") / "data", prefix=["prlimit", "--nofile=256:256"])
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def member(coordinator):
    found = Member(coordinator.invite("member"))
    found.push(random_arrays(1))
    return found


@pytest.fixture
def held():
    """Connections that are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda connection: stack.enter_context(contextlib.closing(connection))


def test_one_address_holds_a_few_silent_connections_and_no_more(coordinator, member, held):
    lines = []
    for _ in range(40):
        with contextlib.suppress(OSError):
            lines.append(held(connect(coordinator.port, STRANGER, tls=False)))
    time.sleep(0.3)
    assert sum(map(is_open, lines)) <= door.STRANGERS_OF_ADDRESS
    assert member.remote.state()


def test_a_newcomer_takes_the_place_of_the_oldest_stranger(coordinator, held):
    address = "127.0.0.67"
    lines = [held(connect(coordinator.port, address)) for _ in range(door.STRANGERS_OF_ADDRESS)]
    time.sleep(door.STAY_SECONDS + 0.2)
    held(connect(coordinator.port, address))
    assert [is_open(line) for line in lines] == [False] + [True] * (len(lines) - 1)


def test_a_member_comes_in_where_strangers_behind_its_address_hold_all_they_may(coordinator, member, held):
    lines = []
    for _ in range(door.STRANGERS_OF_KNOWN_ADDRESS):
        with contextlib.suppress(OSError):
            lines.append(held(connect(coordinator.port, HOUSEHOLD, tls=False)))
    time.sleep(door.STAY_SECONDS + 0.1)
    again = Remote(coordinator.address, coordinator.pin, member.key, member.id, 5.0)
    assert again.state() is not None
    again._session.close()
    assert member.push(random_arrays(2))


def test_strangers_of_many_addresses_together_hold_a_quarter_of_the_descriptors(coordinator, member, held):
    lines = []
    for number in range(100, 130):
        for _ in range(4):
            with contextlib.suppress(OSError):
                lines.append(held(connect(coordinator.port, f"127.0.1.{number}", tls=False)))
    time.sleep(0.3)
    assert 0 < sum(map(is_open, lines)) <= 256 // 4
    time.sleep(door.STAY_SECONDS)
    assert member.push(random_arrays(3))
    assert coordinator.ask("status")["devices"] == 1


def test_the_process_does_without_descriptors_for_a_while(tmp_path):
    running = Coordinator(tmp_path / "data", prefix=["prlimit", "--nofile=24:24"])
    members = [Member(running.invite(), patience=1.0) for _ in range(3)]
    lines = []
    for _ in range(30):
        with contextlib.suppress(OSError):  # turned away at once
            lines.append(connect(running.port, STRANGER, tls=False))
    for _ in range(5):
        with contextlib.suppress(Exception):
            members[0].push(random_arrays(1))
    for line in lines:
        line.close()
    members[0].remote.patience = 10.0
    assert members[0].remote.state() is not None
    assert running.stop() == 0
    with open(running.log.name) as log:
        text = log.read()
    assert "Traceback" not in text
    assert len(text) < 50_000


def test_a_locked_ledger_and_a_lack_of_descriptors_are_busy_and_not_broken():
    for error in (sqlite3.OperationalError("database is locked"), OSError(24, "EMFILE"), OSError(23, "ENFILE")):
        refused = passing_trouble(error)
        assert (refused.status, refused.retry_after) == (503, 5)
    assert passing_trouble(OSError(5, "EIO")) is None
    assert passing_trouble(sqlite3.OperationalError("disk I/O error")) is None


def test_bad_joins_of_others_do_not_turn_away_a_good_invitation(coordinator):
    body = b"{}"
    text = b"POST /v1/join HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    codes = [ask(coordinator.port, HOUSEHOLD, text)[0] for _ in range(25)]
    assert set(codes) == {422, 429}
    assert Member(coordinator.invite()).joined


def test_a_large_body_of_a_stranger_counts_as_a_failure(coordinator):
    text = b"POST /v1/join HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9999999\r\n\r\n"
    codes = [ask(coordinator.port, "127.0.0.68", text)[0] for _ in range(22)]
    assert codes[0] == 413
    assert codes[-1] == 429


def test_the_status_page_is_for_this_machine_and_not_for_whom_a_proxy_brings(coordinator):
    for path in ("/", "/metrics"):
        for host, more, expected in (
            ("localhost:9000", "", 200), ("127.0.0.1", "", 200), ("[::1]:1", "", 200),
            ("fleet.example.org", "", 403), ("localhost", "X-Forwarded-For: 192.0.2.7\r\n", 403),
            ("localhost", "Forwarded: for=192.0.2.7\r\n", 403), ("localhost", "Via: 1.1 tunnel\r\n", 403),
        ):  # fmt: skip
            text = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n".encode()
            status, body = ask(coordinator.port, HOUSEHOLD, text)
            assert status == expected, (host, more)
            assert status == 200 or json.loads(body)["error"] == "local_only"


def test_an_address_is_a_household():
    assert door.origin("192.0.2.7") == "192.0.2.7"
    assert door.origin("2001:db8:1:2::7") == door.origin("2001:db8:1:2:ffff::1") != door.origin("2001:db8:1:3::7")
    assert door.origin("fe80::1%eth0") != door.origin("fe80::2%eth0")


def test_handshakes_of_one_unknown_address_are_paced_and_members_come_in(coordinator, member):
    came_in = 0
    for _ in range(int(door.HANDSHAKES) + 20):
        with contextlib.suppress(OSError):
            connect(coordinator.port, "127.0.0.77").close()
            came_in += 1
    assert 1 <= came_in <= door.HANDSHAKES + 10
    assert member.remote.state()
