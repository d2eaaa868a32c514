"""What leaves a device, read from the wire: everything is in the published list, and everything in the list leaves."""

import base64
import json
import re

import numpy as np
import pytest

from comigs_edge.fleet import rounds, sync
from comigs_edge.fleet.client import Remote
from comigs_edge.fleet.generalist import describe_generalist
from comigs_edge.fleet.leaving import LEAVES, STAYS
from comigs_edge.home import folder as homes
from comigs_edge.home.versions import versions
from coordinator.protocol import compress, keys, wire
from coordinator.protocol.messages import Commit, Join
from tests.coordinator.recorder import Recorder
from tests.coordinator.rig import Coordinator
from tests.docs_commands import ROOT
from tests.fleet.rig import Device, step
from tests.tiny import some_text

SECRET = "my locker is 88-15-3407 behind the blue door"
ASKED = "and whom does the letter of 1931 name as the heir?"  # in a chat that is kept
OTHERS = [each for each in LEAVES if not each.is_private]  # what leaves to a fleet that is not private
LOSSES = [each for each in LEAVES if each.only_with_report_loss]
MASKED_BACK = {"/v1/uploads/{sha256}:tensors": "/v1/uploads/{sha256}:masked"}  # what an upload to a private fleet is
FIXED = {"/v1/hello", "/v1/state", "/v1/join", "/v1/manifests", "/v1/updates", "/v1/refusals"}  # paths that tell nothing more
SEEN_BY_ALL = {"time", "address"}  # by every server, in no byte


class Spoiler:
    """Another member, who takes back what the fleet has learned, so that the others refuse the next generalist."""

    def __init__(self, coordinator, folder):
        address, code, pin = keys.read_link(coordinator.invite("spoiler"))
        key, home = keys.new_key(), homes.locate()
        public, self.folder, self.coordinator = keys.public_text(key), folder, coordinator
        self.remote = Remote(address, pin, key, keys.device_id(public), 2.0)
        trained = describe_generalist(home, home.settings())
        self.joined = self.remote.join(Join(code=code, name=None, public_key=public, generalist=trained, version="test"))

    def spoil(self):
        newest = self.coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1)["newest_round"]
        first, last = (self.arrays(number) for number in (0, newest))
        change = {name: np.clip(4 * (first[name] - last[name]), -60, 60) for name in last}
        packed = compress.pack(change, compress.update_format(self.joined.settings.update_format, newest))
        sha256 = self.remote.upload(wire.encode(packed))
        self.remote.commit(Commit(sha256=sha256, trained_from=newest, tokens=100, expected_round=newest + 1))
        self.coordinator.until(lambda status: status["newest_round"] > newest)

    def arrays(self, number):
        sha256 = self.coordinator.rounds()[number]["sha256"]
        return wire.decode((self.coordinator.data / "payloads" / sha256).read_bytes(), "a generalist")


@pytest.fixture
def lived(run, ready, tmp_path, monkeypatch, reports_loss):
    """A device's life in a fleet, recorded: joining, rounds, a refusal, no network, a download that goes on, a new key."""
    monkeypatch.setattr(rounds, "PATIENCE", 0.5)
    monkeypatch.setattr(sync, "PATIENCE", 2.0)
    (tmp_path / "text" / "secret.txt").write_text("\n\n".join(f"{SECRET}. {part}" for part in some_text(20, 7).split("\n\n")))
    run("data", "add", tmp_path / "text")
    run("chat", "--base", "--keep", "--max-tokens", "2", "--prompt", ASKED)
    settings = ready / "config.toml"
    settings.write_text(
        re.sub(r"(\[fleet\].*\n)", rf"\1gate = 0\nreport_loss = {str(reports_loss).lower()}\n", settings.read_text())
    )
    coordinator = Coordinator(tmp_path / "coordinator", local_steps=2, goal=1)
    with Recorder(coordinator) as recorder:
        run("join", recorder.link("kitchen-pi"))
        run("train", "--steps", 4)
        recorder.is_away = True
        run("train", "--steps", 2)
        recorder.is_away = False
        assert json.loads(run("sync", "--json").stdout)["updates"]
        Spoiler(coordinator, tmp_path).spoil()
        newest = coordinator.rounds()[coordinator.ask("status")["newest_round"]]
        part = ready / "fleet" / "generalists" / f".{newest['sha256'][:16]}.part"
        part.write_bytes((coordinator.data / "payloads" / newest["sha256"]).read_bytes()[:100])
        assert json.loads(run("sync", "--json").stdout)["refused"] == newest["number"]
        (ready / "device.key").unlink()
        run("join", recorder.link("kitchen-pi-2"))
    coordinator.stop()
    return recorder


def places(requests):
    """Where there is something in these requests, in the words of `LEAVES`."""
    found = set()
    for request in requests:
        path = re.sub(r"/[0-9a-f]{64}$", "/{sha256}", re.sub(r"/(generalists|changes)/\d+$", r"/\1/{number}", request.path))
        path = re.sub(r"/v1/windows/[0-9a-f]{32}", "/v1/windows/{window}", path)
        found |= {path, *request.headers, *(f"{path}?{name}" for name in request.query)}
        if request.method == "PATCH":
            found.add(f"{path}:tensors")
        elif request.body:
            found |= {f"{path}:{field}" for field in fields(json.loads(request.body))}
    return found - FIXED


def fields(message):
    for name, value in message.items():
        if name == "generalist":
            yield from (f"{name}.{each}" for each in value)
        else:
            yield name


def uploads(requests):
    """What was uploaded, whole."""
    whole = {}
    for request in requests:
        if request.method == "PATCH":
            content, offset = whole.setdefault(request.path, bytearray()), int(request.headers["Upload-Offset"])
            content[offset : offset + len(request.body)] = request.body
    return whole


@pytest.mark.parametrize("reports_loss", [False, True])
def test_everything_on_the_wire_is_in_the_list_and_the_reverse(lived, ready, reports_loss):
    requests = lived.requests()
    listed = {place for each in OTHERS for place in each.wire if reports_loss or not each.only_with_report_loss}
    assert places(requests) == listed - SEEN_BY_ALL
    assert {request.headers["User-Agent"] for request in requests} == {"comigs-edge"}
    home = homes.locate()
    tensors = describe_generalist(home, home.settings()).tensors
    found = uploads(requests)
    assert len(found) >= 3
    for path, content in found.items():
        assert {name: array.shape for name, array in wire.decode(bytes(content), path).items()} == tensors


@pytest.mark.parametrize("reports_loss", [True])
def test_no_text_specialist_or_router_is_on_the_wire_in_any_encoding(lived, ready, reports_loss):
    recorded = lived.wire + b"".join(map(bytes, uploads(lived.requests()).values()))
    for canary in canaries(ready):
        for encoded in encodings(canary):
            assert encoded not in recorded, canary
    assert b"kitchen-pi" not in recorded  # the link's name is the coordinator's own
    assert b'"tokens":' in recorded


def canaries(home):
    """Pieces of what must stay: text, and numbers of every specialist and router."""
    for secret in (SECRET, ASKED):
        yield from (secret[start : start + 16].encode() for start in range(0, 28, 4))
    yield from (sentence.encode() for sentence in some_text().split(". ")[:50])
    for number in versions(home / "adapters"):
        for path in (home / "adapters" / f"{number:04d}").glob("*.safetensors"):
            if path.stem != "generalist":
                for array in wire.decode(path.read_bytes(), str(path)).values():
                    for kind in (np.float32, np.float16):
                        piece = array.ravel()[:8].astype(kind)
                        if np.count_nonzero(piece) == len(piece):
                            yield piece.tobytes()


def encodings(piece):
    """As it is, in hexadecimal, and in base64 from each of its three beginnings."""
    yield from (piece, piece.hex().encode(), piece.hex().upper().encode())
    for start in range(3):
        aligned = piece[start : start + (len(piece) - start) // 3 * 3]
        yield from (base64.b64encode(aligned), base64.urlsafe_b64encode(aligned))


def test_what_a_device_gives_to_private_windows_is_in_the_list_and_the_reverse(tmp_path):
    coordinator = Coordinator(tmp_path / "coordinator", private=True)
    with Recorder(coordinator) as recorder:
        devices = [Device(tmp_path / f"home-{number}") for number in range(3)]
        for device in devices:
            device.join_coordinator(recorder.link("device") if device is devices[0] else coordinator.invite())
        for number, device in enumerate(devices):
            device.exchange(tokens=0)
            coordinator.until(lambda status: status["newest_round"] == 0)
            device.exchange(tokens=0)
            device.learn(step(number))
        begun = len(recorder.requests())
        for _ in range(8):
            for device in reversed(devices):
                device.exchange(tokens=100 if coordinator.ask("status")["open_round"] == 1 else 0)
        requests, recorded = recorder.requests()[begun:], recorder.wire
    coordinator.stop()
    assert coordinator_published(devices)
    window = [each for each in LEAVES if each.occasion == "a private window"]
    found = {MASKED_BACK.get(place, place) for place in places(requests) if "windows" in place or "uploads" in place}
    assert found | {"Upload-Offset"} == {place for each in window for place in each.wire}
    uploaded = b"".join(map(bytes, uploads(requests).values()))
    for device in devices:
        for sealed in filter(None, map(device.folder.brought, device.books.standing.brought)):
            for array in sealed.packed.values():
                for kind in (np.float32, np.float16):  # no number of any update, in the clear
                    assert array.ravel()[:8].astype(kind).tobytes() not in uploaded + recorded


def coordinator_published(devices):
    return all(device.books.standing.trained_from >= 1 and device.books.standing.brought for device in devices)


def test_a_dry_run_shows_the_whole_list(run, ready, coordinator):
    run("join", coordinator.invite())
    found = json.loads(run("sync", "--dry-run", "--json").stdout)
    assert {each["what"] for each in found["leaves"]} == {each.what for each in OTHERS} - {each.what for each in LOSSES}
    assert set(found["stays"]) == {*STAYS, "validation losses"}
    shown = " ".join(run("sync", "--dry-run").stdout.split())
    for each in LEAVES:
        assert (each.what in shown) == (each in OTHERS and each not in LOSSES), each.what


def test_the_published_table_is_the_list():
    page = (ROOT / "docs" / "privacy.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page.split("<!-- what leaves -->")[1].split("<!-- end")[0], re.M)[
        1:
    ]
    listed = [(each.occasion, each.what, each.sent) for each in LEAVES]
    assert rows == listed
    assert "docs/privacy.md#in-a-fleet-everything-that-leaves-the-device" in (ROOT / "README.md").read_text()
