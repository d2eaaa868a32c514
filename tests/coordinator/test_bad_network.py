"""Uploads and downloads through a network that is slow, breaks off and comes back (proxy.py): they end, and waste little."""

import gc
import hashlib
import time

import numpy as np
import pytest

import comigs_edge.fleet.client
from comigs_edge.fleet.client import MAX_PIECE, PIECE, Offline
from coordinator.protocol import keys, wire
from coordinator.protocol.messages import Commit
from tests.coordinator.proxy import Faults, Proxy
from tests.coordinator.rig import Coordinator, Member

SHAPES = {"generalist.blk.0.ffn_up.weight": (640, 512)}  # 1.3 MB: five pieces
# What urllib3 forgets of connections that broke off is closed by the garbage collector, inside the test.
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed"), pytest.mark.filterwarnings("ignore:Exception ignored in")]
OVERHEAD = 6000  # bytes of TLS and headers for a connection and its requests


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    running = Coordinator(tmp_path_factory.mktemp("network") / "data", update_format="float32", goal=1)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def member(coordinator):
    found = Member(coordinator.invite(), shapes=SHAPES)
    assert found.push(update(0)).round == 0
    return found


@pytest.fixture
def quick(monkeypatch):
    """The device waits a fiftieth of a second where it would wait minutes."""
    monkeypatch.setattr(comigs_edge.fleet.client, "MAX_WAIT", 0.02)


def update(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


class Through:
    """The member's client, for a while, through a bad network; `sent` are the bytes of pieces that it sent."""

    def __init__(self, member, coordinator, faults, patience=60.0, seed=1):
        self.remote, self.coordinator, self.patience, self.sent = member.remote, coordinator, patience, 0
        self.proxy = Proxy(coordinator.port, faults, seed)

    def __enter__(self):
        self.proxy.__enter__()
        self.kept = self.remote.address, self.remote.patience, self.remote._send
        self.remote._session.close()  # no connection of before goes on
        self.remote.address, self.remote.patience = f"https://127.0.0.1:{self.proxy.port}", self.patience
        self.remote._send = self._send
        return self

    def __exit__(self, *unused):
        self.remote.address, self.remote.patience, self.remote._send = self.kept
        self.remote._session.close()
        self.proxy.__exit__()
        gc.collect()

    def _send(self, method, path, body, headers, stream):
        self.sent += len(body) if method == "PATCH" else 0
        return self.kept[2](method, path, body, headers, stream)


def bring(member, through, data):
    """Uploads and commits; the receipt."""
    assert through.remote.upload(data) == hashlib.sha256(data).hexdigest()
    state = through.remote.state()
    return through.remote.commit(Commit(
        sha256=hashlib.sha256(data).hexdigest(), trained_from=newest(member).round, tokens=1, expected_round=state.open_round
    ))  # fmt: skip


def newest(member):
    return keys.open_manifest(member.remote.state().newest, member.joined.signing_key)


@pytest.mark.parametrize("faults", [
    Faults(cut_after=(200_000, 700_000)),
    Faults(cut_after=(200_000, 700_000), is_reset=False),
    Faults(cut_down_after=(1_200, 1_600)),  # the piece arrived, its answer does not
    Faults(drop_share=0.3, cut_after=(300_000, 600_000)),
    Faults(flap=(0.4, 0.2), rate=2e6),
    Faults(delay=0.001, rate=1e6),
], ids=["reset", "truncation", "answers-lost", "drops", "flaps", "slow"])  # fmt: skip
def test_an_upload_ends_and_wastes_one_piece_a_cut_at_most(coordinator, member, quick, faults, request):
    data = wire.encode(update(hash(request.node.name) % 10**6))
    with Through(member, coordinator, faults) as through:
        assert through.remote.upload(data) == hashlib.sha256(data).hexdigest()
        proxy = through.proxy
        lost = proxy.cuts + proxy.dropped
        assert len(data) <= through.sent <= len(data) + lost * PIECE + MAX_PIECE
        assert proxy.up <= len(data) + proxy.cuts * PIECE + MAX_PIECE + proxy.connections * OVERHEAD + 10 * OVERHEAD
        assert lost or faults.rate


def test_a_silent_connection_is_given_up_and_the_upload_ends(coordinator, member, quick, monkeypatch):
    monkeypatch.setattr(comigs_edge.fleet.client, "TIMEOUT", (2, 0.5))
    data = wire.encode(update(77))
    with Through(member, coordinator, Faults(stall_after=400_000)) as through:
        through.remote.upload(data)
        assert through.sent <= len(data) + through.proxy.connections * PIECE + MAX_PIECE


@pytest.mark.parametrize("is_reset", [True, False])
def test_a_download_goes_on_where_it_broke_off(coordinator, member, quick, tmp_path, is_reset):
    manifest = newest(member)
    with Through(member, coordinator, Faults(cut_down_after=(400_000, 600_000), is_reset=is_reset)) as through:
        through.remote.download(manifest, tmp_path / "generalist")
        proxy = through.proxy
    assert hashlib.sha256((tmp_path / "generalist").read_bytes()).hexdigest() == manifest.sha256
    assert proxy.cuts >= 2
    assert proxy.down <= manifest.size + proxy.cuts * PIECE + proxy.connections * OVERHEAD


def test_a_network_that_is_gone_is_said_in_a_sentence(coordinator, member, quick):
    with Through(member, coordinator, Faults(drop_share=1.0), patience=0.5) as through:
        with pytest.raises(Offline, match=r"cannot be reached .*everything is kept"):
            through.remote.state()
        assert through.proxy.dropped >= 2


@pytest.mark.torture
def test_five_megabytes_at_256_kbit_a_second_with_drops_and_flaps(tmp_path):
    """Takes three to ten minutes; the device's waits are the real ones."""
    shapes = {"generalist.blk.0.ffn_up.weight": (1250, 1000)}
    coordinator = Coordinator(tmp_path / "data", update_format="float32", goal=1)
    member = Member(coordinator.invite(), shapes=shapes)
    data = wire.encode(update(5, shapes))
    faults = Faults(rate=32_000, drop_share=0.3, cut_after=(300_000, 2_000_000), flap=(20, 3))
    with Through(member, coordinator, faults, patience=600.0) as through:
        begin = time.monotonic()
        through.remote.upload(data)
        proxy, seconds = through.proxy, time.monotonic() - begin
    print(f"{seconds:.0f} s, {proxy.cuts} cuts, {proxy.dropped} drops, {proxy.up - len(data):,} bytes more than it has passed")
    assert through.sent <= len(data) + (proxy.cuts + proxy.dropped) * PIECE + MAX_PIECE
    coordinator.stop()
