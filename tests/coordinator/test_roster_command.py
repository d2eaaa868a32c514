"""`comigs-coordinator roster`: what is made, signed and refused, without devices."""

import json

import pytest

from coordinator.__main__ import main
from coordinator.protocol import keys
from coordinator.protocol.messages import decode
from coordinator.protocol.private.messages import SignedRoster
from coordinator.protocol.private.roster import open_roster
from tests.coordinator.ledger.test_fleet import Room

NAMES = ("kitchen-pi", "shed", "attic")
KEYS = [keys.public_text(keys.new_key()) for _ in NAMES]


@pytest.fixture
def at_home(tmp_path, monkeypatch, capsys):
    """Types commands in a folder with a key and a list; returns what is printed, or the error's sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMIGS_COORDINATOR_DATA", str(tmp_path / "data"))
    (tmp_path / "devices.txt").write_text("".join(f"{key} {name}  # ours\n" for key, name in zip(KEYS, NAMES, strict=True)))

    def type_command(line):
        code = 0
        try:
            main(line.split())
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        assert code == (1 if said.err else 0)
        assert said.err.count("\n") <= 1
        return said.err or said.out

    type_command("roster new-key owner.key")
    return type_command


SIGN = "roster sign owner.key devices.txt roster.json"


def test_what_is_signed_is_the_list_and_the_next_has_a_larger_serial(at_home, tmp_path):
    first = json.loads(at_home(f"{SIGN} --fleet f --json"))
    assert first["devices"] == dict(zip(KEYS, NAMES, strict=True))
    public = keys.public_text(keys.key_from_pem((tmp_path / "owner.key").read_bytes(), "owner.key"))
    signed = decode((tmp_path / "roster.json").read_bytes(), SignedRoster)
    assert open_roster(signed, public).devices == first["devices"]
    more = keys.public_text(keys.new_key())
    (tmp_path / "devices.txt").write_text(f"{KEYS[0]} a\n{KEYS[1]} b\n{more} c\n")
    shown = at_home(SIGN)
    assert f"added      {more} c" in shown
    assert f"removed    {KEYS[2]} attic" in shown
    signed = decode((tmp_path / "roster.json").read_bytes(), SignedRoster)
    assert open_roster(signed, public).serial > first["serial"]
    assert open_roster(signed, public).fleet == "f"


def test_a_key_that_is_there_is_never_written_over(at_home, tmp_path):
    before = (tmp_path / "owner.key").read_bytes()
    assert "owner.key is there already" in at_home("roster new-key owner.key")
    assert (tmp_path / "owner.key").read_bytes() == before


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        (f"{KEYS[0]} a\n{KEYS[1]} b\n", "has 2 devices, and a private fleet has 3 to 4096"),
        (f"{KEYS[0]} a\n{KEYS[0]} b\n", "line 2: the key of b stands there twice"),
        ("kitchen-pi\n", "line 1: 'kitchen-pi' is not a device's key and its name"),
        (f"{KEYS[0]} a b\n", "is not a device's key and its name"),
        (f"{KEYS[0]}\n", "is not a device's key and its name"),
        (f"{KEYS[0]}A a\n", "is not a device's key and its name"),
    ],
    ids=["too few", "a key twice", "no key", "two names", "no name", "a key too long"],
)
def test_a_list_that_cannot_be_signed_is_told_with_its_line(at_home, tmp_path, listed, sentence):
    (tmp_path / "devices.txt").write_text(listed)
    assert sentence in at_home(f"{SIGN} --fleet f")
    assert not (tmp_path / "roster.json").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (SIGN, "name the fleet"),
        ("roster sign gone.key devices.txt roster.json --fleet f", "gone.key cannot be read"),
        ("roster sign devices.txt devices.txt roster.json --fleet f", "holds no private key"),
        ("roster sign owner.key gone.txt roster.json --fleet f", "gone.txt cannot be read"),
        ("roster sign owner.key devices.txt devices.txt --fleet f", "devices.txt is no roster"),
        ("roster sign owner.key devices.txt gone/roster.json --fleet f", "cannot be written"),
        ("roster new-key gone/owner.key", "cannot be written"),
        (f"{SIGN} --fleet {'f' * 256}", "no device reads such a roster"),
        (f"{SIGN} --fleet f\udcff", "no device reads such a roster"),
        ("roster use gone.json", "gone.json cannot be read"),
        ("roster use devices.txt", "devices.txt is no roster"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence(at_home, line, sentence):
    assert sentence in at_home(line)


def test_the_coordinator_takes_a_roster_of_its_fleet_that_is_not_older(at_home, tmp_path):
    room = Room(tmp_path / "data")
    fleet = room.fleet.id
    room.fleet.database.close()
    assert "no roster" in at_home("roster show")
    at_home(f"{SIGN} --fleet another")
    assert f"this roster is of the fleet another, and this one is {fleet}" in at_home("roster use roster.json")
    (tmp_path / "roster.json").unlink()
    at_home(f"{SIGN} --fleet {fleet}")
    old = (tmp_path / "roster.json").read_bytes()
    at_home(SIGN)
    at_home("roster use roster.json")
    assert json.loads(at_home("roster show --json"))["devices"] == sorted(NAMES)
    (tmp_path / "old.json").write_bytes(old)
    assert "is not older, so no device follows it" in at_home("roster use old.json")
    at_home("roster use roster.json")  # the same once more
    assert "everything that is kept is sound" in at_home("check")


def test_another_keys_roster_is_followed_by_no_roster_of_this_one(at_home):
    at_home(f"{SIGN} --fleet f")
    at_home("roster new-key other.key")
    assert "is the roster of another key or fleet" in at_home("roster sign other.key devices.txt roster.json")
    assert "is the roster of another key or fleet" in at_home(f"{SIGN} --fleet g")


def signed_number(tmp_path):
    signed = decode((tmp_path / "roster.json").read_bytes(), SignedRoster)
    return open_roster(signed, signed.key).serial


def test_a_number_ahead_is_followed_where_the_roster_before_is_lost(at_home, tmp_path):
    at_home(f"{SIGN} --fleet f --number {2**52}")
    assert signed_number(tmp_path) == 2**52
    assert f"roster.json has the number {2**52}, and devices follow no smaller one" in at_home(f"{SIGN} --number {2**52}")
    at_home(SIGN)
    assert signed_number(tmp_path) == 2**52 + 1


def test_no_number_is_signed_that_no_device_reads(at_home, tmp_path):
    at_home(f"{SIGN} --fleet f --number {2**53 - 1}")
    assert "no device reads such a roster" in at_home(SIGN)
    assert signed_number(tmp_path) == 2**53 - 1
    for number in (2**53, 0, -1, "x"):
        with pytest.raises(SystemExit, match="2"):
            main([*SIGN.split(), "--number", str(number)])


def test_a_list_of_another_system_is_read(at_home, tmp_path):
    text = (tmp_path / "devices.txt").read_text()
    (tmp_path / "devices.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert json.loads(at_home(f"{SIGN} --fleet f --json"))["devices"] == dict(zip(KEYS, NAMES, strict=True))


def test_a_roster_is_taken_off_with_what_that_means(at_home, tmp_path):
    room = Room(tmp_path / "data")
    fleet = room.fleet.id
    room.fleet.database.close()
    at_home(f"{SIGN} --fleet {fleet}")
    at_home("roster use roster.json")
    assert "gives nothing to them until its person says: comigs-edge join LINK --roster-key none" in at_home("roster use none")
    assert json.loads(at_home("roster show --json"))["roster"] is None
    assert "everything that is kept is sound" in at_home("check")
    at_home("roster use roster.json")  # as before
    assert json.loads(at_home("roster show --json"))["devices"] == sorted(NAMES)
