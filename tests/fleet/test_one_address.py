"""A device speaks to its coordinator's address and to no other, whatever answers, settings or the environment say."""

import json
import socket
import threading

import pytest

from comigs_edge.errors import ComigsError
from comigs_edge.fleet import exchange
from comigs_edge.fleet.exchange import Exchange
from comigs_edge.fleet.http import HTTPTransport
from coordinator.protocol import keys
from tests.fleet import odd
from tests.fleet.hostile import Hostile, http
from tests.fleet.test_answers import CALLS, STATE, answer_as

pytestmark = [pytest.mark.filterwarnings("ignore:unclosed"), pytest.mark.filterwarnings("ignore:Exception ignored in")]


class Listener:
    """A second server, that counts who connects."""

    def __init__(self):
        self.socket, self.connections = socket.create_server(("127.0.0.1", 0)), 0
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self):
        """After this nobody can be on the way any more."""
        with socket.create_connection(("127.0.0.1", self.port)):
            while self.connections == 0:
                pass
        self.connections -= 1
        self.socket.close()


@pytest.fixture
def other():
    return Listener()


@pytest.fixture
def hostile(tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir()
    found = Hostile(folder)
    yield found
    found.close()


@pytest.mark.parametrize("call", CALLS)
def test_no_redirection_is_followed(hostile, other, tmp_path, call):
    for status in (300, 301, 302, 303, 305, 307, 308):
        for scheme in ("http", "https"):
            place = f"{scheme}://127.0.0.1:{other.port}/v1/state"
            hostile.answer = lambda request, status=status, place=place: http(b"", status, [("Location", place)])
            with pytest.raises(ComigsError):
                CALLS[call](hostile.device(0.1), tmp_path)
    assert len(hostile.requests) >= 14
    other.close()
    assert other.connections == 0


def test_nothing_is_sent_without_tls(other):
    transport = HTTPTransport(f"http://127.0.0.1:{other.port}", bytes(32), keys.new_key(), "d" * 32, 0.1)
    with pytest.raises(ComigsError):
        transport.state()
    other.close()
    assert other.connections == 0


def test_proxies_of_the_environment_are_not_used(hostile, other, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{other.port}")
    hostile.answer = lambda request: http(STATE)
    assert hostile.device().state().open_round == 0
    other.close()
    assert other.connections == 0


def changed(**fields):
    state = json.loads(STATE)
    for name, value in fields.items():
        (state["settings"] if name in state["settings"] else state)[name] = value
    return json.dumps(state).encode()


@pytest.mark.parametrize(
    "fields", [{"next_poll_seconds": 1e300}, {"next_poll_seconds": -1.0}, {"local_steps": 0}, {"local_steps": 10**9}], ids=str
)
def test_a_state_beyond_its_bounds_is_refused(hostile, fields):
    hostile.answer = lambda request: http(changed(**fields))
    with pytest.raises(ComigsError, match=next(iter(fields))):
        hostile.device().state()


def test_a_device_is_never_told_to_stay_away_for_longer_than_an_hour(hostile, tmp_path):
    fleet, now = odd.Fleet(), 0.0
    device, state = odd.Device(tmp_path / "home", hostile, fleet), fleet.state()
    state.next_poll_seconds, state.has_contributed = 3e8, True
    fleet.state = lambda: state
    hostile.answer = answer_as(fleet)
    found = Exchange(device.books, device.transport, lambda: now)
    found.run(device.local, 0, None)
    assert not found.is_due()
    now = exchange.MAX_POLL
    assert found.is_due()


@pytest.mark.parametrize(
    "fields", [{"sha256": "../../../../outside"}, {"sha256": "/" + "0" * 63}, {"size": -1}, {"change_size": -1}], ids=str
)
def test_a_signed_manifest_with_a_path_or_a_negative_size_brings_no_byte(hostile, tmp_path, fields):
    fleet = odd.Fleet()
    fleet.publish(0.5, **fields)
    hostile.answer = answer_as(fleet)
    device, before = odd.Device(tmp_path / "home", hostile, fleet), set(tmp_path.rglob("*"))
    with pytest.raises(ComigsError):
        device.exchange()
    assert not any(request.path.startswith(("/v1/generalists", "/v1/changes")) for request in hostile.requests)
    assert {path.parent for path in set(tmp_path.rglob("*")) - before} <= {tmp_path / "home" / "fleet"}
