"""What earlier versions have left in `fleet/` of a home: it is read, and the fleet continues from it."""

import json

import numpy as np
from safetensors.numpy import save

from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.standing import Sealed
from comigs_edge.home.folder import Home
from coordinator.protocol import keys
from tests.coordinator.rig import SHAPES, arrays
from tests.fleet.rig import NAME, Device, FolderFleet, FolderTransport

MEMBERSHIP = """{
 "address": "https://192.0.2.7:8443",
 "pin": "5f",
 "fleet": "fleet",
 "device": "d0",
 "name": "kitchen-pi",
 "signing_key": "%s",
 "joined": "1f2e3d4c",
 "local_steps": 2,
 "update_format": "float32",
 "averaging": "separate"
}"""
STANDING = {
    "number": 3, "trained_from": 0, "head": 0, "head_hash": "", "refused": -1, "kept": {},
    "acknowledged": "00aa", "unsent_tokens": 640,
}  # fmt: skip
OUTBOX = {
    "id": "00bb", "trained_from": 0, "tokens": 640, "update_format": "float32", "averaging": "separate",
    "validation_loss": None,
}  # fmt: skip


def write(path, tensors, facts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save(tensors | {"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}))


def test_a_home_of_an_earlier_version_brings_what_waits_and_takes_over(tmp_path):
    fleet = FolderFleet(tmp_path / "stick")
    other = Device(tmp_path / "other").join_folder(fleet, "d1")
    other.exchange()
    fleet.close()  # generalist 0: zeros
    root = tmp_path / "home"
    (root / "fleet").mkdir(parents=True)
    (root / "fleet" / "membership.json").write_text(MEMBERSHIP % keys.public_text(fleet.key))
    head = {"head_hash": keys.chain_hash(fleet.links[0])}
    write(root / "fleet" / "standing.safetensors", arrays(0.5), STANDING | head)
    write(root / "fleet" / "outbox.safetensors", arrays(1.0), OUTBOX)
    device = Device(root)
    device.transport = FolderTransport(fleet, "d0")
    device.open()
    assert device.books.mark == "1f2e3d4c/3/00bb"
    device.local = device.books.resume(arrays(9.0), "1f2e3d4c/2/")  # of a checkpoint that is older than the update
    assert device.value == 1.5
    device.exchange(tokens=0)
    fleet.close()
    outcome = device.exchange(tokens=0)
    assert outcome.had_arrived
    assert (outcome.taken_over, device.value, device.books.standing.unsent_tokens) == (1, 1.0, 0)


def test_what_is_written_is_what_earlier_versions_read(tmp_path):
    folder = FleetFolder(Home(tmp_path))
    folder.seal(Sealed(**OUTBOX, packed=arrays(1.0)))
    Device(tmp_path / "home").join_folder(FolderFleet(tmp_path / "stick"), "d0")
    raw = (tmp_path / "fleet" / "outbox.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert set(header) == {*SHAPES, "facts"}
    start, stop = header["facts"]["data_offsets"]
    body = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert json.loads(body[start:stop]) == OUTBOX
    assert header[NAME]["dtype"] == "F32"
    assert json.loads((tmp_path / "home" / "fleet" / "membership.json").read_bytes()).keys() == json.loads(MEMBERSHIP).keys()
