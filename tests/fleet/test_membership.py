"""In a fleet, out of it and back: what counted and what did not, and who is who; with a real coordinator."""

import json
import shutil

import numpy as np
import pytest

from comigs_edge.arrays import add, subtract
from comigs_edge.base.hparams import read_hparams
from comigs_edge.fleet import joining, rounds
from comigs_edge.fleet import sync as syncing
from comigs_edge.fleet.client import RemoteRefused
from comigs_edge.fleet.generalist import select_generalist
from comigs_edge.fleet.heard import Heard
from comigs_edge.fleet.outcome import Judgement
from comigs_edge.fleet.waiting import unsent_tokens
from comigs_edge.home.folder import Home
from comigs_edge.home.marks import Mark
from comigs_edge.home.versions import load, read_manifest, versions
from coordinator.protocol import keys
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import Settings, State
from quantize.gguf_file import GGUFFile
from tests.coordinator.rig import Coordinator, generalist
from tests.fleet.rig import BASE, NAME, Device
from tests.fleet.test_exchange import settled
from tests.fleet.test_ordinary_life import newest, reopened
from tests.fleet.test_tokens import ROW, counted, sync_until_quiet


@pytest.fixture
def coordinator(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "PATIENCE", 0.5)
    running = Coordinator(tmp_path / "data", update_format="float32", local_steps=2)
    yield running
    running.stop()


def member(coordinator, root, name):
    """With generalist 0."""
    device = Device(root).join_coordinator(coordinator.invite(name))
    device.exchange(tokens=0)
    return device


def join_again(coordinator, device, name=None):
    mark = device.books.mark
    joining.join(Home(device.folder.root.parent), coordinator.invite(name), None, generalist(base=BASE))
    reopened(device)
    device.local = device.books.resume(device.local, mark, device.books.standing.unsent_tokens)


def test_what_a_removal_dropped_counts_once_when_the_device_is_back(coordinator, tmp_path):
    first, second = (member(coordinator, tmp_path / name, name) for name in ("first", "second"))
    second.exchange(tokens=0)
    settled(coordinator)
    for device in (first, second):
        device.exchange(tokens=0)
    first.learn(2.0)
    assert first.exchange(tokens=100).receipts
    coordinator.ask("revoke", name="first")
    with pytest.raises(RemoteRefused, match="was removed from the fleet"):
        first.exchange(tokens=0)
    join_again(coordinator, first)
    assert first.books.standing.unsent_tokens == 100
    first.learn(4.0)
    first.exchange(tokens=10)
    second.exchange(tokens=0)
    coordinator.ask("revoke", name="second")
    settled(coordinator)
    first.exchange(tokens=0)
    assert (newest(coordinator), first.value, counted(coordinator)) == (6.0, 6.0, 110)


def test_what_was_trained_alone_while_removed_counts_when_the_device_is_back(run, ready, coordinator):
    run("join", coordinator.invite("lost"))
    run("train", "--steps", 2)
    settled(coordinator)
    run("sync")
    settled(coordinator)
    coordinator.ask("revoke", name="lost")
    found = json.loads(run("train", "--steps", 4, "--json").stdout)
    assert "lost was removed from the fleet" in found["fleet"]["trouble"]
    assert "lost was removed from the fleet" in json.loads(run("status", "--json").stdout)["fleet"]["troubles"][0]
    run("train", "--steps", 3, "--no-sync")
    run("join", coordinator.invite("lost"))
    assert json.loads(run("status", "--json").stdout)["fleet"]["waits"]
    sync_until_quiet(run, coordinator)
    assert counted(coordinator) == (2 + 4 + 3) * ROW
    assert json.loads(run("status", "--json").stdout)["fleet"]["troubles"] == []


def spoil(path, damage):
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:40])
        return
    path.unlink()
    if damage == "empty":
        path.write_text("{}")
    if damage == "folder":
        (path / "in").mkdir(parents=True)


DAMAGES = ["unlink", "cut", "empty", "folder"]


def present_generalist(home):
    """Of the newest adapters."""
    number = versions(home / "adapters")[-1]
    hparams = read_hparams(GGUFFile(home / "base.gguf"))
    return select_generalist(load(home / "adapters", hparams, read_manifest(home / "adapters", number)["base_sha256"]).arrays)


def away_and_back(run, home, coordinator, how):
    """Out of the fleet, trained alone meanwhile, and back."""
    if how == "leave":
        run("leave")
    else:
        (home / "fleet").rename(home / "elsewhere")
    run("train", "--steps", 3)
    if how == "leave":
        run("join", coordinator.invite("pi"))
    else:
        (home / "elsewhere").rename(home / "fleet")


@pytest.mark.parametrize("how", ["leave", "moved away"])
@pytest.mark.parametrize("first", ["train", "sync", "refused"])
def test_what_was_trained_alone_counts_wherever_the_books_stood(run, ready, coordinator, monkeypatch, how, first):
    run("join", coordinator.invite("pi"))
    run("train", "--steps", 2)
    settled(coordinator)
    run("sync")
    settled(coordinator)
    steps, again = 2, 0
    if first == "sync":  # brings what it took up, and takes over
        run("train", "--steps", 2, "--no-sync")
        run("sync")
        steps += 2
    if first == "refused":
        run("train", "--steps", 2, "--no-sync")
        steps += 2
        refused = None
        with monkeypatch.context() as patch:
            patch.setattr(syncing, "_judge", lambda *_: lambda before, after: Judgement(1.0, 9.0))
            while refused is None:  # the first brings it, and what is made of it may be there at once
                refused = json.loads(run("sync", "--json").stdout)["refused"]
                settled(coordinator)
        again = coordinator.rounds()[refused]["tokens"]  # it is turned back, so what it had of this device comes once more
    before = present_generalist(ready)
    away_and_back(run, ready, coordinator, how)
    alone = subtract(present_generalist(ready), before)
    assert json.loads(run("status", "--json").stdout)["fleet"]["waits"]
    sync_until_quiet(run, coordinator)
    assert counted(coordinator) == (steps + 3) * ROW + again
    if first != "refused":
        after = present_generalist(ready)
        for name, array in add(before, alone).items():
            np.testing.assert_allclose(after[name], array, rtol=0, atol=2**-9)  # updates travel as float32, changes as float16


def test_a_training_alone_goes_on_where_its_begin_cannot_be_noted(run, ready, coordinator):
    run("join", coordinator.invite("pi"))
    run("train", "--steps", 2)
    run("leave")
    (ready / "alone").write_text("in the way of the folder")
    result = run("train", "--steps", 2, "--json")
    assert json.loads(result.stdout)["finished"]
    assert "a fleet that is joined again may not receive what it learns" in result.stderr.replace("\n", " ")
    run("join", coordinator.invite("pi"))
    run("sync")


def test_tokens_that_an_earlier_version_did_not_count_are_those_of_the_books(tmp_path, coordinator):
    books = member(coordinator, tmp_path / "pi", "pi").books
    books.standing.number, books.standing.unsent_tokens = 1, 5
    assert unsent_tokens(books.membership, books.standing, Mark(books.mark, None)) == 5
    assert unsent_tokens(books.membership, books.standing, Mark(books.mark, 7)) == 7


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_deleted_membership_is_made_anew_of_what_the_standing_knows(run, ready, coordinator, damage):
    run("join", coordinator.invite("pi"))
    run("train", "--steps", 2)
    path = ready / "fleet" / "membership.json"
    before = path.read_bytes()
    spoil(path, damage)
    assert "is made anew of what standing.json says" in json.loads(run("status", "--json").stdout)["fleet"]["troubles"][0]
    assert "is made anew" in run("sync").stderr.replace("\n", " ")
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_any_membership_the_way_back_is_said_and_training_goes_on_alone(run, ready, coordinator, damage):
    run("join", coordinator.invite("pi"))
    run("train", "--steps", 2)
    for name in ("membership.json", "standing.json"):
        spoil(ready / "fleet" / name, damage)
    way = "ask for an invitation (comigs-coordinator invite) and join again: comigs-edge join LINK"
    result = run("train", "--steps", 2, "--json")
    assert way in result.stderr.replace("\n", " ")
    assert json.loads(result.stdout)["finished"]
    assert way in json.loads(run("status", "--json").stdout)["fleet"]["troubles"][0]
    said = run("sync", code=1).stderr.replace("\n", " ")
    assert way in said
    assert "__init__" not in said  # no word of Python's
    run("join", coordinator.invite("pi"))
    run("sync")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lost_standing_is_named_once_and_its_device_goes_on(run, ready, coordinator, damage):
    run("join", coordinator.invite("pi"))
    run("train", "--steps", 2)
    settled(coordinator)
    run("sync")
    spoil(ready / "fleet" / "standing.safetensors", damage)
    said = run("sync").stderr.replace("\n", " ")
    assert "what the model has learned is kept" in said
    assert ("was set aside" in said) == (damage != "unlink")
    assert said.count("is damaged") + said.count("is gone") <= 1
    assert counted(coordinator) == 2 * ROW
    assert "learned" not in run("sync").stderr


def test_a_member_that_asks_for_another_name_hears_that_it_keeps_its_own(run, ready, coordinator):
    link = coordinator.invite()
    run("join", link, "--name", "pi")
    said = run("join", link, "--name", "other").stderr.replace("\n", " ")
    assert "is known there as pi and keeps that name, other is not used" in said
    assert "known there" not in run("join", link, "--name", "pi").stderr
    assert "already known as pi" in run("join", coordinator.invite(), "--name", "other", code=1).stderr.replace("\n", " ")


def test_an_invitation_to_somebody_else_says_so(run, ready, coordinator):
    address, code, _ = keys.read_link(coordinator.invite("pi"))
    said = run("join", keys.link(address, code, bytes(32)), code=1).stderr.replace("\n", " ")
    assert "shows another key than the invitation names" in said


def test_a_known_key_keeps_its_name_and_a_name_its_key(coordinator, tmp_path):
    device = member(coordinator, tmp_path / "device", "pi")
    with pytest.raises(RemoteRefused, match=r"this key is already known as pi; a copied card needs .* delete its device\.key"):
        join_again(coordinator, device, "copy")
    join_again(coordinator, device, "pi")
    assert coordinator.ask("invite", name="pi")["note"].startswith("only pi itself can use it")
    anew = Device(tmp_path / "anew")
    with pytest.raises(RemoteRefused, match="with a new key, its owner removes the old one: comigs-coordinator revoke pi"):
        anew.join_coordinator(coordinator.invite("pi"))
    coordinator.ask("revoke", name="pi")
    with pytest.raises(CoordinatorError, match="pi was removed already; to have it back: comigs-coordinator invite --name pi"):
        coordinator.ask("revoke", name="pi")
    assert coordinator.ask("invite", name="pi")["note"] is None
    joined = anew.join_coordinator(coordinator.invite("pi")).books.membership
    names = {row["id"]: row["name"] for row in coordinator.ask("devices")["devices"]}
    assert names[joined.device] == "pi"
    assert names[device.books.membership.device].startswith("pi.")


def test_a_copied_card_is_named_and_one_that_was_put_back_is_not(coordinator, tmp_path):
    device = member(coordinator, tmp_path / "home", "pi")
    settled(coordinator)
    device.exchange(tokens=0)
    shutil.copytree(tmp_path / "home", tmp_path / "copy")

    def work(device):
        device.exchange(tokens=0)
        device.learn(1.0)
        device.exchange(tokens=10)
        settled(coordinator)
        return device.folder.heard.alarm(device.folder.key_file)

    alarms = [work(device), work(device), work(device)]
    restored = Device(tmp_path / "copy")
    restored.local = device.local
    copy = reopened(restored)
    alarms += [work(copy), work(copy), work(copy)]
    assert alarms == [None] * 6  # so far it may be the only one
    work(device), work(copy)
    assert "a copy of its card" in (work(device) or work(copy))


def test_a_round_that_waits_for_devices_says_so():
    state = State(
        open_round=4, newest=None, has_contributed=True, next_poll_seconds=5.0, waits_for=1,
        settings=Settings(local_steps=2, update_format="float16", averaging="separate"),
    )  # fmt: skip
    assert Heard().hear(state, ()).waiting == "round 4 waits for 1 more device"
    state.waits_for = 2
    assert Heard().hear(state, ()).waiting == "round 4 waits for 2 more devices"
    state.waits_for = 0
    assert Heard().hear(state, ()).waiting is None


@pytest.mark.parametrize("damage", ["unlink", "cut", "flip"])
def test_a_kept_generalist_that_is_damaged_is_brought_anew_before_the_next_is_judged(coordinator, tmp_path, damage):
    device = member(coordinator, tmp_path / "home", "pi")
    for value in (1.0, 1.0):
        settled(coordinator)
        device.exchange(tokens=0)
        device.learn(value)
        device.exchange(tokens=10)
    settled(coordinator)
    since = device.books.standing.trained_from
    path = device.folder.generalist_path(since)
    whole = path.read_bytes()
    match damage:
        case "unlink":
            path.unlink()
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "flip":
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    judged = []
    device.exchange(tokens=0, judge=lambda before, after: judged.append(before) or Judgement(1.0, 1.0))
    assert float(judged[0][0][NAME][0, 0]) == 1.0  # with what counted since taken away, as on an undamaged device
    assert f"generalist {since} was damaged or gone on this device; it was brought anew" in device.folder.notes


def test_an_empty_invitation_and_a_key_that_is_none_are_one_sentence(run, ready, coordinator):
    assert "the invitation is empty; ask for one: comigs-coordinator invite" in run("join", "", code=1).stderr.replace("\n", " ")
    run("join", coordinator.invite())
    (ready / "device.key").write_bytes(b"-----BEGIN \xff\xfe")
    said = run("sync", code=1).stderr.replace("\n", " ")
    assert "holds no private key, or a damaged one; restore it from a backup" in said
    assert "http" not in said
