"""Whatever a coordinator answers, a device's call ends in time with an answer, `Offline` or a sentence."""

import contextlib
import gzip
import itertools
import random
import resource
import time

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comigs_edge.errors import ComigsError
from comigs_edge.fleet.transport import Offline
from coordinator.protocol import keys
from coordinator.protocol.messages import Commit, Hello, Join, Joined, Manifest, Receipt, State, encode
from coordinator.protocol.messages import Settings as Rules
from tests.coordinator.rig import generalist
from tests.fleet import odd
from tests.fleet.hostile import HELLO, Hostile, http

MANIFEST = Manifest(fleet="f" * 16, round=0, sha256="0" * 64, size=5000, previous="", base_sha256="b" * 64, devices=1)
RULES = Rules(local_steps=10, update_format="float16", averaging="separate")
STATE = encode(State(open_round=0, newest=None, has_contributed=False, settings=RULES, next_poll_seconds=5.0))
RECEIPT = encode(Receipt(round=1, weight=1.0))
JOINED = encode(Joined(fleet="f" * 16, device="d" * 32, name="d", signing_key="s", settings=RULES))
LINKS = b"[" + encode(keys.sign_manifest(keys.new_key(), MANIFEST)) + b"]"
WANTED = Join(code="c", name=None, public_key="k", generalist=generalist(), version="x")
WISH = Commit(sha256="0" * 64, trained_from=0, tokens=1, expected_round=1)
CALLS = {
    "state": lambda device, folder: device.state(),
    "join": lambda device, folder: device.join(WANTED),
    "manifests": lambda device, folder: device.manifests(-1),
    "commit": lambda device, folder: device.commit(WISH),
    "upload": lambda device, folder: device.upload(b"x" * 1000),
    "download": lambda device, folder: device.download(MANIFEST, folder / "generalist"),
}
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed"), pytest.mark.filterwarnings("ignore:Exception ignored in")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Hostile(tmp_path_factory.mktemp("hostile"))
    yield found
    found.close()


@pytest.fixture
def hostile(server):
    server.begin()
    return server


def try_call(hostile, call, folder, answer, patience=1.0):
    """Seconds that it took; anything but a `ComigsError` comes through."""
    hostile.answer = lambda request: answer
    begin = time.monotonic()
    try:
        CALLS[call](hostile.device(patience), folder)
    except ComigsError:
        pass
    return time.monotonic() - begin


def answer_as(fleet):
    """What a hostile coordinator answers that behaves."""

    def answer(request):
        status, headers, body = fleet.reply(request)
        return http(body, status, headers)

    return answer


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


@pytest.mark.parametrize(("call", "make"), [
    ("state", drip), ("upload", drip), ("download", drip), ("state", endless), ("upload", endless), ("download", endless),
])  # fmt: skip
def test_an_answer_without_end_ends_with_the_patience_and_takes_no_memory(hostile, tmp_path, call, make):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert try_call(hostile, call, tmp_path, make(), patience=0.3) < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 20_000


def test_compressed_zeros_are_refused_as_they_are(hostile, tmp_path):
    hostile.answer = lambda request: http(gzip.compress(bytes(50_000_000)), headers=[("Content-Encoding", "gzip")])
    with pytest.raises(ComigsError, match="which nobody asked for"):
        hostile.device().state()


@pytest.mark.parametrize("date", ["yesterday", "", "Mon, 01 Jan 99999 00:00:00 GMT", "12", "Fri, 31 Dec 9999 23:59:59 -2359"])
def test_a_date_that_is_none_is_not_listened_to(hostile, date):
    hostile.hello, hostile.answer = http(HELLO, headers=[("Date", date)]), lambda request: http(STATE)
    assert hostile.device().state().open_round == 0


def test_a_newer_protocol_or_way_to_learn_is_said_in_a_sentence(hostile):
    hostile.answer = lambda request: http(STATE.replace(b"float16", b"pickle"))
    with pytest.raises(ComigsError, match=r"'pickle'.*upgrade comigs-edge"):
        hostile.device().state()
    hostile.hello = http(encode(Hello(fleet="f", epoch="0", version="9", protocol=2)))
    with pytest.raises(ComigsError, match="version 2 of the protocol and this device 1; upgrade comigs-edge"):
        hostile.device().state()


@pytest.mark.parametrize(("call", "answer"), [("state", STATE), ("commit", RECEIPT), ("join", JOINED), ("manifests", LINKS)])
def test_fields_that_nobody_knows_are_ignored(hostile, call, answer):
    hostile.hello = http(HELLO.replace(b"{", b'{"later":1,', 1))
    hostile.answer = lambda request: http(answer.replace(b"{", b'{"later":{"a":[1]},'))
    CALLS[call](hostile.device(), None)


def test_fields_that_nobody_knows_in_a_manifest_or_a_refusal_are_ignored(hostile):
    table = msgspec.to_builtins(MANIFEST) | {"later": {"a": [1]}}
    key = keys.new_key()
    data = msgspec.json.encode(table)
    signed = keys.SignedManifest(manifest=keys.to_text(data), signature=keys.to_text(key.sign(data)))
    assert keys.open_manifest(signed, keys.public_text(key)) == MANIFEST
    hostile.answer = lambda request: http(b'{"later":[1],"error":"revoked","message":"this device is no member"}', 403)
    with pytest.raises(ComigsError, match="this device is no member"):
        hostile.device().state()


def test_an_upload_that_does_not_move_is_given_up(hostile):
    hostile.answer = lambda request: http(b"", 204, [("Upload-Offset", "0")])
    with pytest.raises(ComigsError, match="0 bytes of an upload"):
        hostile.device().upload(b"x" * 1000)
    assert len(hostile.requests) < 10


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


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(call=st.sampled_from(sorted(CALLS)), answer=answers())
def test_any_answer_ends_a_call_in_time(hostile, tmp_path, call, answer):
    assert try_call(hostile, call, tmp_path, answer, patience=0.05) < 3


def test_a_coordinator_that_is_gone_is_offline(hostile):
    hostile.answer = lambda request: b""
    with pytest.raises(Offline):
        hostile.device(0.2).state()


@pytest.mark.parametrize("seed", range(24))
def test_any_answers_end_an_exchange_in_time_and_leave_a_home_that_goes_on(hostile, tmp_path, seed):
    fleet = hostile.answer = odd.Odd(random.Random(seed))
    device = odd.Device(tmp_path / "home", hostile, fleet.fleet, patience=0.1)
    for _ in range(3):
        begin = time.monotonic()
        with contextlib.suppress(ComigsError):
            device.exchange()
        assert time.monotonic() - begin < 6  # a dozen calls
        device.open()
    assert all(np.isfinite(array).all() for array in device.local.values())


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data + b"x"]
)
def test_where_a_change_arrives_damaged_the_whole_generalist_comes(hostile, tmp_path, damage):
    fleet = odd.Fleet()
    hostile.answer = answer_as(fleet)
    device = odd.Device(tmp_path, hostile, fleet)
    assert device.exchange(0.0).taken_over == 0
    fleet.publish(0.5)
    fleet.files["/v1/changes/1"] = damage(fleet.files["/v1/changes/1"])
    outcome = device.exchange(0.0)
    assert (outcome.taken_over, outcome.bytes_received) == (1, len(fleet.files["/v1/generalists/1"]))
    assert device.folder.generalist_path(1).read_bytes() == fleet.files["/v1/generalists/1"]
    paths = [request.path for request in hostile.requests]
    assert paths.index("/v1/changes/1") < paths.index("/v1/generalists/1")


@pytest.mark.parametrize("make", [lambda data: data[:-4] + np.float32("nan").tobytes(), lambda data: bytes(len(data))])
def test_a_signed_generalist_that_is_none_is_not_kept(hostile, tmp_path, make):
    fleet = odd.Fleet()
    hostile.answer = answer_as(fleet)
    device = odd.Device(tmp_path, hostile, fleet)
    device.exchange(0.0)
    bad = make(fleet.files["/v1/generalists/0"])
    fleet.publish(0.5, sha256=odd.hashlib.sha256(bad).hexdigest())
    fleet.files["/v1/generalists/1"] = bad
    with pytest.raises(ComigsError, match=r"generalist 1.*nothing was taken over, tell whoever runs the coordinator"):
        device.exchange(0.0)
    assert not device.folder.generalist_path(1).exists()
    assert device.books.standing.trained_from == 0


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
def test_a_kept_generalist_that_is_lost_or_damaged_is_no_hindrance(hostile, tmp_path, damage):
    fleet = odd.Fleet()
    hostile.answer = answer_as(fleet)
    device = odd.Device(tmp_path, hostile, fleet)
    device.exchange(0.0)
    fleet.publish(0.5)
    damage(device.folder.generalist_path(0))
    assert device.exchange(0.0).taken_over == 1
    assert device.folder.generalist_path(1).read_bytes() == fleet.files["/v1/generalists/1"]


def test_a_way_back_over_any_number_of_rounds_takes_no_memory(hostile, tmp_path):
    fleet = odd.Fleet()
    hostile.answer = answer_as(fleet)
    for number in (2**53 - 2, 2**53 - 1):
        fleet.files[f"/v1/generalists/{number}"] = fleet.files["/v1/generalists/0"]
    fleet.publish(0.0, round=2**53 - 2)
    device = odd.Device(tmp_path, hostile, fleet)
    device.exchange(0.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fleet.publish(0.0, round=2**53 - 1, rolled_back_to=0)
    device.exchange(0.0)
    assert device.books.standing.head == 2**53 - 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB


def test_a_chain_without_end_is_not_followed_for_ever(hostile, tmp_path, monkeypatch):
    monkeypatch.setattr("comigs_edge.fleet.chain.MAX_ANSWERS", 20)
    fleet = odd.Fleet()
    hostile.answer = answer_as(fleet)
    device = odd.Device(tmp_path, hostile, fleet)
    device.exchange(0.0)
    for _ in range(60):
        fleet.publish(0.0)

    def one_at_a_time(request):
        after = request.path.partition("after=")[2]
        return http(b"[" + encode(fleet.links[int(after) + 1]) + b"]") if after else answer_as(fleet)(request)

    hostile.answer = one_at_a_time
    with pytest.raises(ComigsError, match="nothing was taken over"):
        device.exchange(0.0)
    assert len(hostile.requests) < 40


def test_what_never_arrived_whole_does_not_fill_the_disk(hostile, tmp_path):
    fleet = odd.Fleet()
    device = odd.Device(tmp_path, hostile, fleet, patience=0.1)

    def half(request):
        status, headers, body = fleet.reply(request)
        if not request.path.startswith("/v1/generalists"):
            return http(body, status, headers)
        return http(body[: len(body) // 2], status, [*headers, ("Content-Length", len(body))], length=False)

    hostile.answer = half
    for number in range(6):
        fleet.links.clear()
        fleet.publish(0.25 * number)
        device.exchange(0.0)
    assert len(list(device.folder.generalist_path(0).parent.glob(".*"))) <= 3


@pytest.mark.parametrize("room", [200, 100])
def test_a_full_disk_while_a_generalist_comes_is_one_sentence_and_goes_on_later(hostile, tmp_path, room):
    fleet = odd.Fleet()
    hostile.answer = answer_as(fleet)
    device = odd.Device(tmp_path, hostile, fleet)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))  # bytes of a file: a generalist has more
    try:
        with pytest.raises(ComigsError, match=r"cannot be written \(.*make room") as caught:
            device.transport.download(
                msgspec.json.decode(keys.to_bytes(fleet.links[0].manifest), type=Manifest), tmp_path / "target"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(caught.value)
    assert device.exchange(0.0).taken_over == 0
