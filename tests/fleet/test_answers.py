"""Whatever a coordinator answers, a device's call ends in time with an answer, `Offline` or a sentence."""

import gzip
import itertools
import resource
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comigs_edge.errors import ComigsError
from comigs_edge.fleet.transport import Offline
from coordinator.protocol.messages import Commit, Hello, Manifest, Receipt, State, encode
from coordinator.protocol.messages import Settings as Rules
from tests.fleet.hostile import HELLO, Hostile, http

MANIFEST = Manifest(fleet="f" * 16, round=0, sha256="0" * 64, size=5000, previous="", base_sha256="b" * 64, devices=1)
RULES = Rules(local_steps=10, update_format="float16", averaging="separate")
STATE = encode(State(open_round=0, newest=None, has_contributed=False, settings=RULES, next_poll_seconds=5.0))
RECEIPT = encode(Receipt(round=1, weight=1.0))
WISH = Commit(sha256="0" * 64, trained_from=0, tokens=1, expected_round=1)
CALLS = {
    "state": lambda device, folder: device.state(),
    "manifests": lambda device, folder: device.manifests(-1),
    "commit": lambda device, folder: device.commit(WISH),
    "upload": lambda device, folder: device.upload(b"x" * 1000),
    "download": lambda device, folder: device.download(MANIFEST, folder / "generalist"),
}
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed"), pytest.mark.filterwarnings("ignore:Exception ignored in")]


@pytest.fixture
def hostile(tmp_path):
    found = Hostile(tmp_path)
    yield found
    found.close()


def try_call(hostile, call, folder, answer, patience=1.0):
    """Seconds that it took; anything but a `ComigsError` comes through."""
    hostile.answer = lambda method, path: answer
    begin = time.monotonic()
    try:
        CALLS[call](hostile.device(patience), folder)
    except ComigsError:
        pass
    return time.monotonic() - begin


def drip():
    for _ in range(600):
        yield b" "
        time.sleep(0.05)


def endless():
    yield b"HTTP/1.1 200 x\r\n\r\n"
    yield from itertools.repeat(bytes(1 << 16), 100_000)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answer", [
    http(length=False, headers=[("Content-Length", 10**15)]),
    http(b"{}", headers=[("Upload-Offset", "-1")]), http(b"{}", headers=[("Upload-Offset", "²")]), http(b"", 204),
    http(b"", 204, [("Upload-Offset", "0")]),
    http(b'{"error":"wrong_offset","message":"x"}', 409), http(b'{"error":"stale_epoch","message":"x"}', 401),
    http(b"", 302, [("Location", "http://127.0.0.1:1/")]), http(b"", 307, [("Location", "//[")]), http(b"tea", 418),
    http(b"{}", 503, [("Retry-After", "²")]), http(b"{}", 503, [("Retry-After", "9" * 12)]),
    http(b"{}", 503, [("Retry-After", "-1")]),
    http(b"[" * 100_000), http(b"<html>"), http(b"x" * 9000), http(b"x" * 50, 206, [("Content-Range", "bytes 7-56/5000")]),
    http(b"-1\r\n" + b"x" * 10**6, 200, [("Transfer-Encoding", "chunked")], length=False),
    http(b"{}", headers=[(f"X-{n}", "y" * 60_000) for n in range(90)]),
    b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 " + b"x" * 10**6, b"HTTP/1.1 100 x\r\n\r\n" * 1000,
], ids=[str(number) for number in range(23)])  # fmt: skip
def test_an_absurd_answer_ends_a_call_in_time(hostile, tmp_path, call, answer):
    assert try_call(hostile, call, tmp_path, answer, patience=0.1) < 3


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("make", [drip, endless])
def test_an_answer_without_end_ends_with_the_patience_and_takes_no_memory(hostile, tmp_path, call, make):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert try_call(hostile, call, tmp_path, make()) < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 20_000


def test_compressed_zeros_are_refused_as_they_are(hostile, tmp_path):
    hostile.answer = lambda method, path: http(gzip.compress(bytes(50_000_000)), headers=[("Content-Encoding", "gzip")])
    with pytest.raises(ComigsError, match="which nobody asked for"):
        hostile.device().state()


@pytest.mark.parametrize("date", ["yesterday", "", "Mon, 01 Jan 99999 00:00:00 GMT", "12", "Fri, 31 Dec 9999 23:59:59 -2359"])
def test_a_date_that_is_none_is_not_listened_to(hostile, date):
    hostile.hello, hostile.answer = http(HELLO, headers=[("Date", date)]), lambda method, path: http(STATE)
    assert hostile.device().state().open_round == 0


def test_a_newer_protocol_or_way_to_learn_is_said_in_a_sentence(hostile):
    hostile.answer = lambda method, path: http(STATE.replace(b"float16", b"pickle"))
    with pytest.raises(ComigsError, match=r"'pickle'.*upgrade comigs-edge"):
        hostile.device().state()
    hostile.hello = http(encode(Hello(fleet="f", epoch="0", version="9", protocol=2)))
    with pytest.raises(ComigsError, match="version 2 of the protocol and this device 1; upgrade comigs-edge"):
        hostile.device().state()


@pytest.mark.parametrize(("call", "answer"), [("state", STATE), ("commit", RECEIPT)])
def test_fields_that_nobody_knows_are_ignored(hostile, call, answer):
    hostile.hello = http(HELLO.replace(b"{", b'{"later":1,', 1))
    hostile.answer = lambda method, path: http(answer.replace(b"{", b'{"later":{"a":[1]},', 1))
    CALLS[call](hostile.device(), None)


def test_an_upload_that_does_not_move_is_given_up(hostile):
    hostile.answer = lambda method, path: http(b"", 204, [("Upload-Offset", "0")])
    with pytest.raises(ComigsError, match="0 bytes of an upload"):
        hostile.device().upload(b"x" * 1000)
    assert hostile.requests < 10


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.lists(st.integers(), max_size=3)
HEADERS = st.dictionaries(
    st.sampled_from(["Upload-Offset", "Retry-After", "Content-Range", "Location", "Content-Encoding", "Connection"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30), max_size=3,
)  # fmt: skip
FIELDS = sorted({"error", "message", "round", "weight", "state", *State.__struct_fields__})


@st.composite
def answers(draw):
    body = draw(
        st.binary(max_size=200)
        | st.sampled_from([STATE, RECEIPT])
        | st.dictionaries(st.sampled_from(FIELDS), VALUES).map(repr).map(str.encode)
    )
    status = draw(st.sampled_from([200, 200, 204, 206, 302, 400, 401, 409, 416, 429, 500, 503, 99, 999]))
    return draw(st.just(http(body, status, draw(HEADERS).items(), draw(st.booleans()))) | st.binary(max_size=100))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(call=st.sampled_from(sorted(CALLS)), answer=answers())
def test_any_answer_ends_a_call_in_time(hostile, tmp_path, call, answer):
    assert try_call(hostile, call, tmp_path, answer, patience=0.05) < 3


def test_a_coordinator_that_is_gone_is_offline(hostile):
    hostile.answer = lambda method, path: b""
    with pytest.raises(Offline):
        hostile.device(0.2).state()
