"""`fleet/` of a home as a version before wrote it, with an update that waits: it is taken over, and nothing is lost."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from comigs_edge.fleet.books import Books
from comigs_edge.fleet.exchange import Exchange
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.home.folder import Home
from coordinator.protocol import keys
from coordinator.protocol.messages import SignedManifest
from tests.coordinator.rig import arrays
from tests.fleet import rig
from tests.fleet.rig import BASE, NAME, FolderFleet, FolderTransport

DATA = Path(__file__).parent / "data"
SHAPES = {"generalist.blk.0.ffn_gate.lora_a": (2, 8), "generalist.blk.0.ffn_gate.lora_b": (8, 2)}


@pytest.mark.parametrize("is_older", [False, True])
def test_a_recorded_home_brings_what_waits_and_what_it_learned_since(tmp_path, monkeypatch, is_older):
    monkeypatch.setattr(rig, "SHAPES", SHAPES)
    record = json.loads((DATA / "fleet.json").read_text())
    fleet = FolderFleet(tmp_path / "fleet")
    shutil.copytree(DATA / "payloads", fleet.root, dirs_exist_ok=True)
    fleet.key = keys.key_from_pem(record["key"].encode(), DATA)
    fleet.links = [msgspec.convert(link, SignedManifest) for link in record["links"]]
    shutil.copytree(DATA / "fleet", tmp_path / "home" / "fleet")
    transport = FolderTransport(fleet, "device")
    books = Books(FleetFolder(Home(tmp_path / "home")), SHAPES, lambda: arrays(0.0, SHAPES), BASE, 0.1)
    assert books.mark == record["mark"]
    exchange = Exchange(books, transport)
    # 1 and 2 counted, 4 waits; 8 was learned since, or there is only a checkpoint of before
    local = books.resume(arrays(3.0 if is_older else 15.0, SHAPES), "older" if is_older else record["mark"])
    learned = 7.0 if is_older else 15.0
    for _ in range(3):
        local = exchange.run(local, 100, None).generalist or local
        if fleet.updates:
            fleet.close()
    local = exchange.run(local, 0, None).generalist or local
    assert (local[NAME][0, 0], fleet.arrays(len(fleet.links) - 1)[NAME][0, 0]) == (learned, learned)
