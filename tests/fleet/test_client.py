"""The device's client: through a restart of the coordinator, with a wrong clock, against a repeating chain."""

import datetime
import time
from pathlib import Path

import msgspec
import pytest
import requests

from comigs_edge.fleet.answers import clock
from comigs_edge.fleet.chain import Check, ForkedChain, follow
from comigs_edge.fleet.client import RemoteRefused
from coordinator.protocol import keys
from coordinator.protocol.messages import Generalist, Join, Manifest, Problem, encode
from tests.coordinator.rig import Coordinator, Member, generalist, random_arrays
from tests.fleet.hostile import Hostile, http


@pytest.fixture
def coordinator(tmp_path):
    running = Coordinator(tmp_path / "data")
    yield running
    if running.process.poll() is None:
        running.stop()


def test_an_upload_goes_on_after_the_coordinator_was_started_anew(coordinator):
    member = Member(coordinator.invite())
    data = member.encoded(random_arrays(0), -1)
    member.remote.state()
    coordinator.kill()
    coordinator.restart()
    sha256 = member.remote.upload(data)  # begins with a HEAD, signed for the epoch before
    assert (coordinator.data / "uploads" / f"{member.id}-{sha256}").read_bytes() == data


@pytest.mark.parametrize("years", [-10, 10])
def test_a_device_without_a_clock_is_understood(coordinator, monkeypatch, years):
    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(days=365 * years)

    real = datetime.datetime.now().timestamp()
    monkeypatch.setattr("comigs_edge.fleet.client.time.time", lambda: real + 86400 * 365 * years)
    monkeypatch.setattr("coordinator.protocol.signatures.datetime.datetime", Wrong)
    assert Member(coordinator.invite()).remote.state().open_round == 0


FAKETIME = [str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]


@pytest.mark.skipif(not FAKETIME, reason="wants faketime")
@pytest.mark.parametrize("year", [1970, 2045])
def test_a_coordinator_without_a_clock_is_understood(tmp_path, year):
    fake = {"LD_PRELOAD": FAKETIME[0], "FAKETIME": f"@{year}-01-02 00:00:00", "DONT_FAKE_MONOTONIC": "1"}
    running = Coordinator(tmp_path / "data", environment=fake)
    try:
        assert Member(running.invite()).remote.state().open_round == 0
    finally:
        running.stop()


def test_the_clock_of_a_coordinator_that_began_in_1970_is_listened_to():
    answer = requests.Response()
    answer.headers["Date"] = "Fri, 02 Jan 1970 00:00:00 GMT"
    assert clock(answer) == pytest.approx(86400 - time.time(), abs=5)


def test_a_coordinator_that_repeats_old_links_is_not_listened_to_for_ever():
    key = keys.new_key()
    links, previous = [], ""
    for number in range(6):
        manifest = Manifest(
            fleet="f",
            round=number,
            sha256="0" * 64,
            size=1,
            previous=previous,
            base_sha256="b" * 64,
            devices=1,
            rolled_back_to=None,
        )
        links.append(keys.sign_manifest(key, manifest))
        previous = keys.chain_hash(links[-1])
    check = Check("f", keys.public_text(key), "b" * 64)
    assert follow(links[5], 1, keys.chain_hash(links[1]), lambda after: links[after + 1 :], check)[0].round == 5
    with pytest.raises(ForkedChain, match="missing"):
        follow(links[5], 1, keys.chain_hash(links[1]), lambda after: links[1:3], check)


class StrictJoin(msgspec.Struct, forbid_unknown_fields=True):
    """As coordinators knew it that took no field for granted."""

    code: str
    name: str | None
    public_key: str
    generalist: Generalist
    version: str


@pytest.mark.filterwarnings("ignore:unclosed", "ignore:Exception ignored in")
def test_a_coordinator_too_old_for_a_devices_words_is_named_with_the_remedy(tmp_path):
    def answer(request):
        try:
            msgspec.json.decode(request.body, type=StrictJoin)
        except msgspec.DecodeError as error:
            return http(encode(Problem(error="bad_message", message=f"the message cannot be used: {error}")), 422)
        raise AssertionError("it was understood")

    old = Hostile(tmp_path, answer)
    wish = Join(code="c", name=None, public_key="k", generalist=generalist(), version="1", former="d" * 32)
    try:
        with pytest.raises(
            RemoteRefused, match=r"is older than this device's comigs-edge and does not know 'former'; nothing is l"
        ):
            old.device().join(wish)
    finally:
        old.close()
