"""The coordinator's folder: keys that are gone are not made anew, nobody else may write, a recorded folder is taken over."""

import json
import shutil
import time
from pathlib import Path

import msgspec
import pytest

from coordinator.ledger.check import check_folder
from coordinator.ledger.database import Database
from coordinator.ledger.folder import Folder
from coordinator.protocol.errors import CoordinatorError
from tests.coordinator.ledger.test_chain import grown
from tests.coordinator.ledger.test_fleet import Room, arrays

DATA = Path(__file__).parents[1] / "data"
KEYS = ("signing.key", "tls.key", "tls.pem")


@pytest.fixture
def folder(tmp_path):
    room = Room(tmp_path / "room", goal=1)
    grown(room, 1.0)
    room.fleet.database.close()
    return room.root


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("gone", [*([name] for name in KEYS), KEYS])
@pytest.mark.parametrize("has_ledger", [True, False])
def test_a_key_that_is_gone_is_not_made_anew(folder, gone, has_ledger):
    for name in gone:
        (folder / "keys" / name).unlink()
    if not has_ledger:
        (folder / "coordinator.db").unlink()
    before = contents(folder)
    with pytest.raises(CoordinatorError, match="from a backup"):
        Folder(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("data", [b"", b"\x00" * 200, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_is_damaged_is_one_sentence(folder, name, data):
    (folder / "keys" / name).write_bytes(data)
    with pytest.raises(CoordinatorError, match="from a backup"):
        Folder(folder)


def test_keys_of_another_coordinator_are_one_sentence(folder, tmp_path):
    (tmp_path / "other").mkdir()
    other = Folder(tmp_path / "other").root
    shutil.copy(other / "keys" / "signing.key", folder / "keys")
    before = contents(folder)
    with pytest.raises(CoordinatorError, match="did not sign one of the 1 generalists"), Folder(folder).fleet(time.time):
        pass
    for repair in (False, True):
        with pytest.raises(CoordinatorError, match="did not sign"):
            check_folder(folder, repair)
    assert {**before, **contents(folder)} == before | {Path("lock"): b""}
    shutil.copy(other / "keys" / "tls.key", folder / "keys")
    with pytest.raises(CoordinatorError, match="do not fit"):
        Folder(folder)


def test_a_ledger_that_is_a_folder_or_anothers_is_one_sentence(folder):
    path = folder / "coordinator.db"
    path.rename(folder / "aside")
    path.mkdir()
    with pytest.raises(CoordinatorError, match=r"cannot be opened .it is no file.; give it to the user"):
        Database(path)
    with pytest.raises(CoordinatorError, match=r"cannot be opened .unable to open database file."):
        Database(folder / "gone" / "coordinator.db")


def test_settings_that_are_a_folder_are_one_sentence(folder):
    (folder / "config.toml").unlink(missing_ok=True)
    (folder / "config.toml").mkdir()
    with pytest.raises(CoordinatorError, match=r"cannot be read .Is a directory.; move it away"):
        Folder(folder)


def test_a_first_start_that_was_cut_makes_its_keys(tmp_path):
    (tmp_path / "keys.new").mkdir()
    (tmp_path / "keys.new" / "tls.key").write_bytes(b"half")
    assert len(Folder(tmp_path).pin) == 32
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == sorted(KEYS)
    assert not (tmp_path / "keys.new").exists()


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_ledger_that_is_gone_is_not_made_anew(folder, is_empty):
    (folder / "coordinator.db").unlink()
    if is_empty:
        (folder / "coordinator.db").touch()
    with pytest.raises(CoordinatorError, match="gone or empty"):
        Folder(folder)


@pytest.mark.parametrize("name", [".", "keys", "config.toml", "coordinator.db"])
def test_a_folder_that_others_may_write_is_refused(folder, name):
    (folder / name).chmod(0o777)
    with pytest.raises(CoordinatorError, match="other users may write"):
        Folder(folder)


@pytest.fixture
def recorded(tmp_path):
    shutil.copytree(DATA / "folder", tmp_path / "room")
    for path in (tmp_path / "room", *(tmp_path / "room").rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    expected = json.loads((DATA / "expected.json").read_text())
    room = Room(tmp_path / "room", now=expected["now"], goal=2)
    yield room, expected
    room.fleet.database.close()


def test_a_recorded_folder_of_an_earlier_version_is_taken_over_whole(recorded):
    room, expected = recorded
    database = room.fleet.database
    assert Folder(room.root).pin.hex() == expected["pin"]
    found = database.rows("SELECT id, name, joined, last_contact, validation_loss FROM devices ORDER BY id")
    assert found == expected["devices"]
    updates = database.rows("SELECT device, round, sha256, weight, update_id FROM updates ORDER BY round, device")
    assert updates == expected["ledger_updates"]
    assert database.rows("SELECT * FROM refusals") == expected["refusals"]
    for device, state in expected["states"].items():
        told = json.loads(msgspec.json.encode(room.fleet.state(room.members.devices[device])))
        assert {name: told[name] for name in state} == state
    assert len(list(room.fleet.payloads.uploads.iterdir())) == 1


def test_the_next_generalist_of_a_recorded_folder_has_the_bits_of_before(recorded):
    room, expected = recorded
    second = next(device for device in room.members.devices.values() if device.name == "attic-pi")
    room.step((second, arrays(0.75)), update_id="b3")
    assert [signed.manifest for signed in room.chain.manifests(-1)][:3] == expected["manifests"][:3]
    assert room.fleet.database.value("SELECT sha256 FROM rounds WHERE number = 3") == expected["next"]
