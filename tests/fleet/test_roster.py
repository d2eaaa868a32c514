"""A roster that the fleet's owner signed: a coordinator that makes up devices gets nothing masked."""

import json
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest

from comigs_edge.errors import ComigsError
from comigs_edge.fleet.client import RemoteRefused
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.joining import join
from comigs_edge.fleet.roster import NONE, read_key
from coordinator.protocol import keys
from coordinator.protocol.messages import State, decode, encode
from coordinator.protocol.private import masks, steps
from coordinator.protocol.private.messages import Roster, SignedRoster, Window
from coordinator.protocol.private.opening import open_sum
from coordinator.protocol.private.roster import sign_roster
from tests import warm
from tests.coordinator import rig
from tests.coordinator.rig import Coordinator
from tests.fleet import liar as liars
from tests.fleet.rig import BASE, step
from tests.fleet.test_lying_coordinator import notes
from tests.fleet.test_private import fleet_of, generalist, learn, publish, touch


def public_key(device):
    return keys.public_text(device.folder.key())


def roster(devices, serial=1, fleet="fleet"):
    return Roster(
        fleet=fleet, serial=serial, devices={public_key(device): f"device-{number}" for number, device in enumerate(devices)}
    )


class Owner:
    """Of a liar's fleet: what it shows is in `shown`, and all devices know the owner's key."""

    def __init__(self, liar):
        self.liar, self.key, self.shown = liar, keys.new_key(), None
        for device in liar.devices.values():
            self.tell(device)
        self.sign()
        liar.lie = self.show

    def tell(self, device, key=None):
        books = device.books
        books.membership = replace(books.membership, roster_key=keys.public_text(key or self.key))
        device.folder.save_membership(books.membership)

    def sign(self, devices=None, **values):
        self.shown = sign_roster(self.key, roster(devices or self.liar.devices.values(), **values))
        return self.shown

    def show(self, window, device):
        window.roster = self.shown
        return window


def owned(tmp_path, count):
    liar = liars.fleet(tmp_path, count)
    return liar, Owner(liar)


def make_up(liar):
    """A device of the coordinator's own, in the window that is at its keys."""
    key = keys.new_key()
    made = steps.make_keys(bytes(32), liar.window.terms.window, key)
    liar.window.put(keys.device_id(keys.public_text(key)), made, 0.0)
    return key


def test_devices_of_a_signed_roster_give_the_sum(tmp_path):
    liar, _ = owned(tmp_path, 4)
    liar.run_to("answers")
    liar.touch()
    sent = [np.frombuffer(data, "<u4") for (data,) in liar.uploads.values()]
    total = open_sum(liar.window.cohort, liar.window.what, liar.window.answers, sent)
    plain = sum(masks.to_ring(device.folder.outbox().packed) for device in liar.devices.values())
    assert np.array_equal(total, plain)
    assert all((device.folder.root / "roster.json").exists() for device in liar.devices.values())


def test_a_device_that_the_coordinator_made_up_gets_no_shares(tmp_path):
    liar, _ = owned(tmp_path, 3)
    liar.touch()
    key = make_up(liar)
    liar.go_on()
    liar.touch()
    assert liar.given("shares") == []
    assert liar.uploads == {}
    assert f"does not have the device with the key {keys.public_text(key)}" in notes(liar)


def test_one_made_up_device_is_taken_where_nobody_was_told_a_key(tmp_path):
    """What the roster is for, and what devices of before do."""
    liar = liars.fleet(tmp_path, 3)
    liar.touch()
    make_up(liar)
    liar.go_on()
    liar.touch()
    assert len(liar.given("shares")) == 3


@pytest.mark.parametrize(
    ("forge", "sentence"),
    [
        (lambda owner: None, "shows no roster"),
        (lambda owner: owner.sign(fleet="another"), "is of the fleet another and not of fleet"),
        (lambda owner: sign_roster(keys.new_key(), roster(owner.liar.devices.values())), "not signed with the owner's key"),
        (lambda owner: broken(owner.sign()), "not signed with the owner's key"),
        (lambda owner: swapped(owner.sign()), "not signed with the owner's key"),
        (lambda owner: SignedRoster(roster="e30", signature="AA", key="AA"), "cannot be read"),
        (lambda owner: owner.sign(list(owner.liar.devices.values())[1:], serial=2), "does not have the device with the key"),
    ],
    ids=["none", "another fleet's", "another key's", "a broken signature", "a swapped key", "no roster at all", "one left out"],
)
@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "confirmations", "answers"])
def test_a_roster_that_the_owner_did_not_sign_so_gets_nothing_in_any_stage(tmp_path, forge, sentence, stage):
    liar, owner = owned(tmp_path, 3)
    liar.run_to(stage)
    owner.shown, uploads = forge(owner), len(liar.uploads)
    victims = list(liar.devices.values())[:1] if stage == "keys" else list(liar.devices.values())
    liar.touch(victims)
    assert liar.given(stage) == []
    assert len(liar.uploads) == uploads
    assert sentence in notes(liar)
    assert len([note for device in victims for note in device.folder.notes]) == len(victims)  # one sentence each


def broken(signed):
    signed.signature = ("B" if signed.signature[0] == "A" else "A") + signed.signature[1:]
    return signed


def swapped(signed):
    """The signed bytes with one device's key changed for one that the coordinator made."""
    fake = decode(keys.to_bytes(signed.roster), Roster)
    fake.devices.pop(next(iter(fake.devices)))
    fake.devices[keys.public_text(keys.new_key())] = "made up"
    signed.roster = keys.to_text(encode(fake))
    return signed


@pytest.mark.parametrize("serial", [1, 2])
def test_no_roster_is_followed_that_is_not_newer_than_one_that_was_seen(tmp_path, serial):
    liar, owner = owned(tmp_path, 4)
    devices = list(liar.devices.values())
    owner.sign(devices[:3], serial=2)  # the fourth was removed
    liar.touch(devices[:3])
    owner.sign(devices, serial=serial)
    liar.window.put(liar_id(liar, devices[3]), devices_keys(liar, devices[3]), 0.0)
    liar.go_on()
    liar.touch(devices[:3])
    assert liar.given("shares") == []
    assert f"its roster is {serial}, and this device has seen 2, which is not older" in notes(liar)


def liar_id(liar, device):
    return next(name for name, each in liar.devices.items() if each is device)


def devices_keys(liar, device):
    return steps.make_keys(bytes(32), liar.window.terms.window, device.folder.key())


def test_who_was_removed_between_shares_and_masks_gets_nothing_masked(tmp_path):
    liar, owner = owned(tmp_path, 4)
    liar.run_to("masked")
    owner.sign(list(liar.devices.values())[:3], serial=2)
    liar.touch()
    assert liar.uploads == {}
    assert "the owner's roster 2 does not have the device" in notes(liar)


def test_a_device_waits_for_a_roster_and_then_takes_part(tmp_path):
    liar, owner = owned(tmp_path, 3)
    signed, owner.shown = owner.shown, None
    liar.touch()
    assert liar.given("keys") == []
    owner.shown = signed
    liar.touch()
    assert len(liar.given("keys")) == 3


def test_another_key_of_the_owner_begins_a_new_row_of_rosters(tmp_path):
    liar, owner = owned(tmp_path, 3)
    owner.sign(serial=9)
    liar.touch()
    owner.key = keys.new_key()
    for device in liar.devices.values():
        owner.tell(device)
    owner.sign(serial=1)
    liar.run_to("masked")
    liar.touch()
    assert len(liar.uploads) == 3


def test_what_is_no_key_is_told_in_one_sentence():
    assert read_key(NONE) == ""
    assert read_key(key := keys.public_text(keys.new_key())) == key
    for text in ("", "x", "A" * 44, "ä" * 43):
        with pytest.raises(ComigsError, match="is no key of a roster"):
            read_key(text)


def test_messages_of_versions_without_rosters_are_read():
    assert "roster" not in encode(Window(stage="keys", terms={"terms": "", "signature": ""})).decode()
    state = encode(State(open_round=0, newest=None, has_contributed=False, settings=SETTINGS, next_poll_seconds=1.0))
    assert b"is_listed" not in state
    assert decode(state, State).is_listed


SETTINGS = {"local_steps": 1, "update_format": "masked", "averaging": "separate"}


# With a real coordinator -----------------------------------------------------------------------------------------------


def sign_and_use(coordinator, tmp_path, devices, name="roster.json"):
    """As the owner does, by the commands, with the key in owner.key."""
    (tmp_path / "devices.txt").write_text("# ours\n" + "".join(f"{public_key(each)} {each.name}\n" for each in devices))
    words = ("roster", "sign", tmp_path / "owner.key", tmp_path / "devices.txt", tmp_path / name)
    made = offline(*words, "--fleet", devices[0].books.membership.fleet)
    return made, coordinator.command("roster", "use", str(tmp_path / name))


def offline(*words):
    done = warm.run(["-m", "coordinator", *words, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_fleet_with_a_roster_makes_generalists_and_one_that_is_not_in_it_hears_so(private, tmp_path):
    owner = offline("roster", "new-key", tmp_path / "owner.key")["key"]
    assert (tmp_path / "owner.key").stat().st_mode & 0o777 == 0o600
    devices = fleet_of(private, tmp_path, 4)
    for number, device in enumerate(devices):
        device.name = f"device-{number}"
        join(device.home, private.invite(), None, rig.generalist(base=BASE), owner)
        device.open()
        device.learn(step(number))
    touch(devices, tokens=100)
    assert all("shows no roster" in " ".join(device.folder.notes) for device in devices)
    assert private.ask("status")["private"][0]["devices"] == 0
    made, found = sign_and_use(private, tmp_path, devices[:3])
    assert len(made["devices"]) == 3
    assert found["serial"] == made["serial"]
    assert len(found["unlisted"]) == 1
    (note,) = private.ask("status")["notes"]
    assert "not in the owner's roster" in note
    assert found["unlisted"][0] in note
    touch(devices)
    publish(private, devices, 1)
    assert private.rounds()[1]["devices"] == 3
    mean = sum(step(number)["generalist.blk.0.ffn_gate.lora_a"] for number in range(3)) / 3
    before, after = generalist(private, 0), generalist(private, 1)
    name = "generalist.blk.0.ffn_gate.lora_a"
    assert np.allclose(after[name] - before[name], mean, atol=1e-4)
    touch(devices)
    assert devices[3].books.standing.trained_from == 1  # it takes what the others learned
    assert devices[3].books.standing.unsent_tokens == 100
    said = " ".join(devices[3].folder.notes)
    assert "not in the roster that its fleet's owner signed" in said
    assert public_key(devices[3]) in said

    again, _ = sign_and_use(private, tmp_path, devices)
    assert again["serial"] > made["serial"]
    for number in (2, 3, 4):  # the next window may have been begun without it
        if not devices[3].books.standing.brought:
            for device in devices[:3]:
                device.learn(step(number))
            touch(devices, tokens=10)
            publish(private, devices, number)
            touch(devices)
    assert devices[3].books.standing.brought


def test_joining_again_keeps_the_owners_key_until_another_is_said(private, tmp_path):
    (device,) = fleet_of(private, tmp_path, 1)
    key = keys.public_text(keys.new_key())
    trained = rig.generalist(base=BASE)
    member, _ = join(device.home, private.invite(), None, trained, key)
    assert member.roster_key == key
    assert join(device.home, private.invite(), None, trained)[0].roster_key == key
    FleetFolder(device.home).leave()
    assert join(device.home, private.invite(), None, trained)[0].roster_key == key
    (FleetFolder(device.home).root / "membership.json").write_text("{")
    assert FleetFolder(device.home).membership().roster_key == key
    assert join(device.home, private.invite(), None, trained, read_key(NONE))[0].roster_key == ""


def test_the_owners_key_holds_behind_a_coordinator_with_another_certificate(private, tmp_path):
    (device,) = fleet_of(private, tmp_path, 1)
    key = keys.public_text(keys.new_key())
    join(device.home, private.invite(), None, rig.generalist(base=BASE), key)
    pin = FleetFolder(device.home).membership().pin
    member = FleetFolder(device.home).root / "membership.json"
    member.write_text(member.read_text().replace(pin, "0" * 64))  # as before its certificate was made anew
    member, notes = join(device.home, private.invite(), None, rig.generalist(base=BASE))
    assert member.roster_key == key
    assert any(f"the owner's key {key}" in note for note in notes)


def test_who_hears_that_it_was_removed_forgets_the_secrets_of_its_windows(private, tmp_path):
    devices = fleet_of(private, tmp_path, 3)
    learn(devices)
    folder = devices[0].folder.windows
    assert list(folder.glob(".*.seed"))
    name = devices[0].books.membership.name
    private.ask("revoke", name=name)
    with pytest.raises(RemoteRefused, match="was removed from the fleet"):
        devices[0].exchange(tokens=0)
    assert not list(folder.glob(".*.seed"))


def test_a_fleet_that_is_not_private_is_joined_with_no_roster(tmp_path):
    plain = Coordinator(tmp_path / "coordinator")
    try:
        (device,) = fleet_of(plain, tmp_path, 1)
        with pytest.raises(ComigsError, match="this fleet is not private"):
            join(device.home, plain.invite(), None, rig.generalist(base=BASE), keys.public_text(keys.new_key()))
    finally:
        plain.stop()


@pytest.mark.parametrize("stage", ["masked", "confirmations", "answers"])
def test_a_window_in_which_somebody_was_removed_is_given_up_and_nothing_is_lost(private, tmp_path, stage):
    offline("roster", "new-key", tmp_path / "owner.key")
    devices = fleet_of(private, tmp_path, 4)
    for number, device in enumerate(devices):
        device.name = f"device-{number}"
        device.learn(step(number))
    sign_and_use(private, tmp_path, devices)
    touch(devices, tokens=100)
    for device in cycle(devices):
        if private.ask("status")["private"][0]["stage"] == stage:
            break
        device.exchange(tokens=0)
    sign_and_use(private, tmp_path, devices[:3])
    for device in devices:
        device.learn(step(9, 1 / 4096))
    touch(devices, tokens=10)
    publish(private, devices[:3], 1)
    touch(devices[:3])
    assert private.rounds()[1]["devices"] == 3
    assert all(len(device.books.standing.brought) == 1 for device in devices[:3])
