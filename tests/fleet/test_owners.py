"""What the person said of a roster's owner outlives damage, other coordinators and other keys; nobody is left in the dark."""

import json
from itertools import combinations

import pytest

from comigs_edge.errors import ComigsError
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.joining import accept, join
from comigs_edge.fleet.roster import NONE, check_roster, read_key
from comigs_edge.fleet.standing import Standing
from comigs_edge.home.folder import Home
from comigs_edge.home.moving import pack, unpack
from coordinator.protocol import keys
from coordinator.protocol.messages import Hello, Joined, Settings, decode, encode
from coordinator.protocol.private.cohort import Distrust
from coordinator.protocol.private.messages import Roster
from coordinator.protocol.private.roster import sign_roster
from tests.coordinator import rig
from tests.coordinator.rig import Coordinator
from tests.fleet.rig import BASE, Device
from tests.fleet.test_membership import DAMAGES, spoil
from tests.fleet.test_private import fleet_of, learn, publish, run_to, touch
from tests.fleet.test_roster import broken, offline, owned, sign_and_use

GENERALIST = rig.generalist(base=BASE)
PLACES = ("fleet/membership.json", "fleet/standing.json", "owners.json")


def new_key():
    return keys.public_text(keys.new_key())


def followed(private, tmp_path):
    """A device that was told an owner's key, and has exchanged."""
    (device,) = fleet_of(private, tmp_path, 1)
    key = new_key()
    join(device.home, private.invite(), None, GENERALIST, key)
    device.open()
    device.exchange(tokens=0)
    return device, key


class Followed:
    """A home in a fleet whose owner has shown roster 9."""

    def __init__(self, root):
        self.device, self.owner, self.signer = Device(root), keys.new_key(), keys.new_key()
        member = self.join(keys.public_text(self.owner))
        self.folder.save_standing(Standing(number=1), member)
        self.check(9)

    def join(self, roster_key=None, signer=None, fleet="fleet", pin="ab"):
        self.folder = FleetFolder(self.device.home)
        joined = Joined(
            fleet=fleet, device="cd" * 16, name="pi", signing_key=keys.public_text(signer or self.signer),
            settings=Settings(local_steps=1, update_format="masked", averaging="separate"),
        )  # fmt: skip
        return accept(self.folder, joined, "https://pi:1", pin, None, roster_key)

    def check(self, serial, key=None, fleet="fleet"):
        signed = sign_roster(key or self.owner, Roster(fleet=fleet, serial=serial, devices={new_key(): "pi"}))
        check_roster(self.folder, self.folder.membership(), signed, [])


@pytest.fixture
def shown(tmp_path):
    return Followed(tmp_path / "home")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("names", [*combinations(PLACES, 1), *combinations(PLACES, 2)], ids="+".join)
def test_the_owners_key_outlives_two_damaged_files_of_three(shown, names, damage):
    for name in names:
        spoil(shown.device.home.root / name, damage)
    key = keys.public_text(shown.owner)
    assert shown.join().roster_key == key
    assert FleetFolder(shown.device.home).membership().roster_key == key
    with pytest.raises(Distrust, match="has seen 9"):
        shown.check(8)


def test_where_all_three_are_damaged_the_device_asks_and_does_not_forget(private, tmp_path):
    device, key = followed(private, tmp_path)
    for name in PLACES:
        spoil(device.home.root / name, "cut")
    link = private.invite()
    with pytest.raises(
        ComigsError, match=r"owners\.json cannot be read .* so nobody knows any more who signs this fleet's roster"
    ):
        join(device.home, link, None, GENERALIST)
    spoil(device.home.root / "owners.json", "unlink")
    (device.home.fleet / "roster.json").write_text("{")  # where this is, there was a roster
    with pytest.raises(ComigsError, match="nobody knows any more who signs this fleet's roster"):
        join(device.home, link, None, GENERALIST)
    assert join(device.home, link, None, GENERALIST, key)[0].roster_key == key


def test_a_damaged_file_of_owners_is_told_and_made_anew(private, tmp_path):
    device, key = followed(private, tmp_path)
    spoil(device.home.root / "owners.json", "cut")
    folder = FleetFolder(device.home)
    assert folder.membership().roster_key == key
    assert any("owners.json cannot be read" in note for note in folder.notes)
    device.open()
    device.exchange(tokens=0)
    folder = FleetFolder(device.home)
    assert folder.membership().roster_key == key
    assert folder.notes == []
    assert (device.home.root / "owners.json.damaged").exists()


def test_a_version_without_rosters_that_writes_the_membership_forgets_no_key(private, tmp_path):
    device, key = followed(private, tmp_path)
    for path in (device.home.root / name for name in PLACES[:2]):
        facts = json.loads(path.read_text())
        facts.pop("roster_key")
        path.write_text(json.dumps(facts))
    assert FleetFolder(device.home).membership().roster_key == key


def test_a_home_without_a_roster_keeps_no_file_of_owners(private, tmp_path):
    (device,) = fleet_of(private, tmp_path, 1)
    join(device.home, private.invite(), None, GENERALIST)
    assert not (device.home.root / "owners.json").exists()


# Numbers go up --------------------------------------------------------------------------------------------------------


def test_a_coordinator_with_another_signing_key_brings_no_older_roster_back(shown):
    shown.join(signer=keys.new_key(), pin="ef")  # what there was is set aside
    assert not (shown.folder.root / "roster.json").exists()
    with pytest.raises(Distrust, match="its roster is 8, and this device has seen 9"):
        shown.check(8)
    shown.check(10)


def test_leaving_the_fleet_and_coming_back_brings_no_older_roster_back(shown):
    shown.folder.leave()
    assert shown.join(signer=keys.new_key(), pin="ef").roster_key == keys.public_text(shown.owner)
    with pytest.raises(Distrust, match="has seen 9"):
        shown.check(8)


def test_key_and_number_are_in_the_archive_of_a_home(ready, tmp_path):
    shown = Followed(ready)
    pack(shown.device.home, tmp_path / "home.tar", True, lambda done, total: None)
    shown.check(11)
    shown.device.home = Home(tmp_path / "again")
    unpack(shown.device.home, tmp_path / "home.tar", lambda done, total: None)
    shown.folder = FleetFolder(shown.device.home)
    assert shown.folder.membership().roster_key == keys.public_text(shown.owner)
    with pytest.raises(Distrust, match="its roster is 8, and this device has seen 9"):
        shown.check(8)
    shown.check(10)  # what came after the archive was made it cannot know


def test_an_owners_numbers_hold_when_its_key_comes_back(shown):
    other = keys.new_key()
    shown.join(keys.public_text(other))
    shown.check(1, other)
    shown.join(read_key(NONE))
    shown.join(keys.public_text(shown.owner))
    with pytest.raises(Distrust, match="its roster is 8, and this device has seen 9"):
        shown.check(8)
    shown.join(keys.public_text(other))
    with pytest.raises(Distrust, match="its roster is 1, and this device has seen 1"):
        shown.check(1, other)  # another roster under the same number


def test_what_is_said_for_one_fleet_holds_there_when_the_device_comes_back(shown):
    shown.folder.leave()
    assert shown.join(fleet="plain", pin="ef").roster_key == keys.public_text(shown.owner)
    shown.join(read_key(NONE), fleet="plain", pin="ef")
    shown.folder.leave()
    assert shown.join().roster_key == keys.public_text(shown.owner)
    shown.folder.leave()
    assert shown.join(fleet="plain", pin="ef").roster_key == ""


def test_what_is_said_to_a_coordinator_that_took_the_fleets_id_holds_there_alone(shown):
    shown.folder.leave()
    assert shown.join(read_key(NONE), signer=keys.new_key(), pin="ef").roster_key == ""
    shown.folder.leave()
    assert shown.join().roster_key == keys.public_text(shown.owner)
    with pytest.raises(Distrust, match="has seen 9"):
        shown.check(8)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_roster_is_told_and_its_number_still_holds(shown, damage):
    spoil(shown.folder.root / "roster.json", damage)
    with pytest.raises(Distrust, match="has seen 9"):
        shown.check(8)
    told = [note for note in shown.folder.notes if "the newest roster that was seen, is damaged" in note]
    assert len(told) == (damage != "unlink")
    assert all("its number is known" in note for note in told)
    shown.check(10)
    assert decode(keys.to_bytes(json.loads((shown.folder.root / "roster.json").read_text())["roster"]), Roster).serial == 10


def test_a_roster_that_was_changed_on_the_disk_is_told(shown):
    path = shown.folder.root / "roster.json"
    signed = sign_roster(shown.owner, Roster(fleet="fleet", serial=9, devices={}))
    path.write_bytes(encode(broken(signed)))
    with pytest.raises(Distrust, match="has seen 9"):
        shown.check(8)
    assert any("is damaged" in note for note in shown.folder.notes)


def test_the_number_outlives_a_damaged_file_of_owners(shown):
    spoil(shown.folder.owners._path, "cut")
    with pytest.raises(Distrust, match="has seen 9"):
        shown.check(8)


def test_where_the_number_is_lost_in_both_files_the_user_hears_so(shown):
    spoil(shown.folder.owners._path, "cut")
    spoil(shown.folder.root / "roster.json", "cut")
    shown.check(8)
    assert any("nobody knows its number, so an older one may come" in note for note in shown.folder.notes)


# Joining --------------------------------------------------------------------------------------------------------------


def test_a_key_that_was_said_before_keeps_the_device_out_of_a_plain_fleet_and_spends_no_invitation(private, tmp_path):
    device, _ = followed(private, tmp_path)
    private.stop()
    private.flags = {}
    private.restart()
    link = private.invite()
    before = (device.home.root / "owners.json").read_bytes(), (device.home.fleet / "membership.json").read_bytes()
    with pytest.raises(ComigsError, match="this fleet is not private, so its coordinator reads each update"):
        join(device.home, link, None, GENERALIST)
    assert ((device.home.root / "owners.json").read_bytes(), (device.home.fleet / "membership.json").read_bytes()) == before
    assert len(private.ask("devices")["devices"]) == 1
    other = Device(tmp_path / "other")
    assert join(other.home, link, "other", GENERALIST)[0].name == "other"
    assert join(device.home, private.invite(), None, GENERALIST, read_key(NONE))[0].roster_key == ""


def test_a_key_keeps_the_device_out_of_another_coordinators_plain_fleet(private, tmp_path):
    device, _ = followed(private, tmp_path)
    FleetFolder(device.home).leave()
    plain = Coordinator(tmp_path / "plain")
    try:
        link = plain.invite()
        with pytest.raises(ComigsError, match="this fleet is not private"):
            join(device.home, link, None, GENERALIST)
        assert plain.ask("devices")["devices"] == []
        assert join(device.home, link, None, GENERALIST, read_key(NONE))[0].roster_key == ""
    finally:
        plain.stop()


def test_a_coordinator_that_says_no_settings_beforehand_is_refused_after_its_answer(private, tmp_path, monkeypatch):
    device, _ = followed(private, tmp_path)
    private.stop()
    private.flags = {}
    private.restart()
    ask = rig.Remote._ask

    def as_earlier(self, kind, *words):
        answer = ask(self, kind, *words)
        if kind is Hello:
            answer.settings = None
        return answer

    monkeypatch.setattr(rig.Remote, "_ask", as_earlier)
    with pytest.raises(ComigsError, match="this fleet is not private"):
        join(device.home, private.invite(), None, GENERALIST)
    assert FleetFolder(device.home).membership().is_private


# Who is kept out ------------------------------------------------------------------------------------------------------


def test_status_says_who_is_kept_out_and_what_to_do_until_it_is_in_the_roster(private, run, ready, tmp_path):
    owner = offline("roster", "new-key", tmp_path / "owner.key")["key"]
    joined = json.loads(run("join", private.invite("pi"), "--roster-key", owner, "--json").stdout)
    run("train", "--steps", 2)
    private.until(lambda status: status["newest_round"] == 0)

    def status():
        found = json.loads(run("status", "--json").stdout)["fleet"]
        assert ("comigs-edge sync brings it" in run("status").stdout) == (found["waits"] and not found["troubles"])
        return found

    assert "shows no roster" in json.loads(run("sync", "--json").stdout)["kept_out"]
    assert "shows no roster" in json.loads(run("privacy", "--json").stdout)["troubles"][0]
    (trouble,) = status()["troubles"]
    assert "shows no roster" in trouble
    assert "comigs-coordinator roster use" in trouble
    others = [(new_key(), f"device-{number}") for number in range(3)]

    def sign(devices):
        (tmp_path / "devices.txt").write_text("".join(f"{key} {name}\n" for key, name in devices))
        words = ("roster", "sign", tmp_path / "owner.key", tmp_path / "devices.txt", tmp_path / "roster.json")
        offline(*words, "--fleet", joined["fleet"])
        private.command("roster", "use", str(tmp_path / "roster.json"))

    sign(others)
    result = json.loads(run("train", "--steps", 2, "--json").stdout)
    assert joined["public_key"] in result["fleet"]["kept_out"]
    (trouble,) = status()["troubles"]
    assert "not in the roster that its fleet's owner signed" in trouble
    assert joined["public_key"] in trouble
    assert status()["waits"]
    sign([*others, (joined["public_key"], "pi")])
    assert json.loads(run("sync", "--json").stdout)["kept_out"] is None
    assert status()["troubles"] == []


def test_why_a_device_is_kept_out_is_told_once_in_a_training(tmp_path):
    liar, owner = owned(tmp_path, 3)
    owner.shown = None
    device = next(iter(liar.devices.values()))
    for _ in range(3):
        device.exchange(tokens=10)
        assert "shows no roster" in device.folder.heard.kept_out
    assert len([note for note in device.folder.notes if "shows no roster" in note]) == 1


def test_a_roster_is_taken_off_where_the_coordinator_and_each_device_are_told(private, tmp_path):
    owner = offline("roster", "new-key", tmp_path / "owner.key")["key"]
    devices = fleet_of(private, tmp_path, 3)
    for number, device in enumerate(devices):
        device.name = f"device-{number}"
        join(device.home, private.invite(), None, GENERALIST, owner)
        device.open()
    sign_and_use(private, tmp_path, devices)
    private.command("roster", "use", "none")
    assert private.command("roster", "show")["roster"] is None
    learn(devices)
    assert private.ask("status")["private"][0]["devices"] == 0
    assert all("shows no roster" in device.folder.heard.kept_out for device in devices)
    for device in devices:
        device.books.keep(device.local)
        join(device.home, private.invite(), None, GENERALIST, read_key(NONE))
        device.open()
    run_to(private, devices, "masked")
    assert all(device.folder.heard.kept_out is None for device in devices)


def test_a_made_up_device_that_a_newer_roster_removed_gets_no_confirmation_and_no_answer(tmp_path):
    for stage in ("confirmations", "answers"):
        (tmp_path / stage).mkdir()
        liar, owner = owned(tmp_path / stage, 4)
        liar.run_to(stage)
        owner.sign(list(liar.devices.values())[:3], serial=2)
        liar.touch()
        assert liar.given(stage) == []
        assert not list((tmp_path / stage).glob("home-[012]/fleet/windows/.*.seed"))


def test_what_is_secret_of_a_window_is_forgotten_where_the_fleet_turns_plain(private, tmp_path):
    devices = fleet_of(private, tmp_path, 3)
    learn(devices)
    run_to(private, devices, "masked")
    seeds = [path.read_text() for path in tmp_path.glob("home-*/fleet/windows/.*.seed")]
    assert len(seeds) == 3
    private.stop()
    private.flags = {}
    private.restart()
    for device in devices:
        device.books.keep(device.local)
        device.open()
        with pytest.raises(ComigsError, match="this fleet was private, and now its coordinator asks for single updates"):
            device.exchange(tokens=0)
    everything = b"".join(path.read_bytes() for path in tmp_path.glob("home-*/**/*") if path.is_file())
    assert not any(seed.encode() in everything or bytes.fromhex(seed) in everything for seed in seeds)
    for device in devices:
        join(device.home, private.invite(), None, GENERALIST)
        device.open()
    publish(private, devices, 1)
    touch(devices)
    assert [len(device.books.standing.brought) for device in devices] == [1] * 3  # nothing is lost
