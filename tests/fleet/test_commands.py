"""Devices of a fleet, by their commands: join, train in rounds, sync, leave, roll back; with a real coordinator."""

import json
import math

import numpy as np
import pytest

from comigs_edge.base.hparams import read_hparams
from comigs_edge.fleet import rounds
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.home import folder as homes
from comigs_edge.home.versions import read_manifest, versions
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.training import checkpoint
from coordinator.protocol import wire
from quantize.gguf_file import GGUFFile
from tests.coordinator.rig import Coordinator


@pytest.fixture
def coordinator(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "PATIENCE", 0.5)
    running = Coordinator(tmp_path / "coordinator", local_steps=2)
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.mark.parametrize("ready", ["lora", "parallel"], indirect=True)
def test_a_lone_device_is_a_working_fleet(run, ready, coordinator):
    result = run("join", coordinator.invite("kitchen-pi"))
    assert "joined the fleet" in result.stdout
    assert result.stdout.rstrip().endswith("next: comigs-edge train")
    found = json.loads(run("train", "--steps", 6, "--json").stdout)
    assert found["fleet"]["updates"] >= 3
    assert found["fleet"]["generalists"] >= 2
    coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1)
    rounds = coordinator.rounds()
    assert [row["number"] for row in rounds] == list(range(len(rounds)))
    assert {update["name"] for row in rounds for update in row["updates"]} == {"kitchen-pi"}
    assert json.loads(run("status", "--json").stdout)["fleet"]["name"] == "kitchen-pi"


def test_two_devices_train_one_generalist_and_keep_their_specialists(run, ready, coordinator, tmp_path, monkeypatch):
    run("join", coordinator.invite("first"))
    second = tmp_path / "second"
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(second))
    run("init", "--base", ready / "base.gguf")
    (second / "config.toml").write_text((ready / "config.toml").read_text().replace("# seed = 42", "seed = 43"))
    run("data", "add", tmp_path / "text")
    run("join", coordinator.invite("second"))
    specialists = []
    for home in (ready, second, ready, second, ready):
        monkeypatch.setenv("COMIGS_EDGE_HOME", str(home))
        run("train", "--steps", 2, "--json")
        coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1)
    for home in (ready, second):
        monkeypatch.setenv("COMIGS_EDGE_HOME", str(home))
        found = json.loads(run("sync", "--json").stdout)
        assert found["offline"] is None
        folder = home / "adapters" / f"{versions(home / 'adapters')[-1]:04d}"
        specialists.append(wire.decode((folder / "specialist.1.safetensors").read_bytes(), "specialist"))
    closed = [row for row in coordinator.rounds() if row["closed"]]
    assert max(row["devices"] for row in closed) == 2
    first, other = (sorted((home / "fleet" / "generalists").iterdir()) for home in (ready, second))
    both = {path.name for path in first} & {path.name for path in other}
    assert both
    for name in both:
        assert (ready / "fleet" / "generalists" / name).read_bytes() == (second / "fleet" / "generalists" / name).read_bytes()
    assert any(np.abs(specialists[0][name] - specialists[1][name]).max() > 1e-3 for name in specialists[0])


def test_a_training_in_rounds_ends_when_its_patience_is_over(run, ready, coordinator):
    settings = ready / "config.toml"
    ends = 'schedule = "wsd"\npatience = 1\nexpert_learning_rate = 0.5\n'
    settings.write_text(settings.read_text().replace("[train]\n", f"[train]\n{ends}"))
    run("join", coordinator.invite())
    found = json.loads(run("train", "--json").stdout)
    assert found["finished"]
    decided = checkpoint.load(ready / "state").progress["schedule"]["decay_from"]
    assert found["expert_steps"] == decided + math.ceil(decided / 5) < 200
    assert found["fleet"]["updates"] >= 3
    assert found["fleet"]["trouble"] is None


def test_the_router_learns_after_the_exchange_from_what_it_has_brought(run, ready, coordinator, monkeypatch):
    seen, real = [], rounds.Rounds.exchange

    def watched(self, *arguments):
        trainer = self._trainer
        seen.append((trainer.expert_steps, trainer.router_steps))
        return real(self, *arguments)

    monkeypatch.setattr(rounds.Rounds, "exchange", watched)
    assert "router_period = 4\nrouter_steps = 2\n" in (ready / "config.toml").read_text()
    run("join", coordinator.invite())
    run("train", "--steps", 4)
    # At the start, after every two expert steps, before the router steps that are due after four, and at the end.
    assert seen == [(0, 0), (2, 0), (4, 0), (4, 2)]


@pytest.mark.parametrize("ready", ["lora", "parallel"], indirect=True)
def test_what_was_trained_before_joining_is_not_in_the_first_generalist(run, ready, coordinator):
    run("train", "--steps", 2)
    trained = read_manifest(ready / "adapters", 1)
    run("join", coordinator.invite())
    assert json.loads(run("status", "--json").stdout)["fleet"]["waits"]
    begun = json.loads(run("sync", "--json").stdout)
    assert [update["round"] for update in begun["updates"]] == [0]
    assert (begun["waits"], begun["next"]) == (True, "comigs-edge sync")
    coordinator.until(lambda status: status["newest_round"] == 0)
    initial = Adapters.initial(ExpertsConfig(**trained["layout"]), read_hparams(GGUFFile(ready / "base.gguf")), 42).generalist()
    sent = wire.decode((coordinator.data / "payloads" / coordinator.rounds()[0]["sha256"]).read_bytes(), "generalist 0")
    assert sent.keys() == initial.keys()
    for name, array in initial.items():
        np.testing.assert_allclose(sent[name], array, rtol=0, atol=2**-29)
    found = json.loads(run("sync", "--json").stdout)
    assert (found["taken_over"], [update["round"] for update in found["updates"]]) == (0, [1])
    assert (found["waits"], found["next"]) == (False, "comigs-edge chat")
    assert not json.loads(run("status", "--json").stdout)["fleet"]["waits"]
    before, after = (ready / "adapters" / number / "generalist.safetensors" for number in ("0001", "0002"))
    after = wire.decode(after.read_bytes(), "with the fleet")
    for name, array in wire.decode(before.read_bytes(), "before the fleet").items():
        np.testing.assert_allclose(after[name], array, rtol=0, atol=2**-23)


def test_what_would_leave_is_shown_and_nothing_is_sent(run, ready, coordinator):
    run("join", coordinator.invite())
    coordinator.stop()  # a dry run needs nobody
    found = json.loads(run("sync", "--dry-run", "--json").stdout)
    assert found["changes_nothing_yet"]
    run("train", "--steps", 2)
    receipt = json.loads(run("sync", "--dry-run", "--json").stdout)
    assert receipt["tensors"]
    assert all(name.startswith("generalist.") for name in receipt["tensors"])
    assert receipt["bytes"] > sum(tensor["bytes"] for tensor in receipt["tensors"].values())
    assert "specialists" in run("sync", "--dry-run").stdout


def test_a_training_without_its_coordinator_goes_on_and_brings_the_update_later(run, ready, coordinator):
    run("join", coordinator.invite())
    run("train", "--steps", 2)
    coordinator.until(lambda status: status["newest_round"] >= 1)
    coordinator.stop()
    found = run("train", "--steps", 4, "--json")
    assert json.loads(found.stdout)["fleet"]["waits"]
    assert "training goes on, the update waits" in found.stderr.replace("\n", " ")
    before = coordinator
    coordinator.restart()
    assert before.ask("status")["updates"] == 0
    brought = json.loads(run("sync", "--json").stdout)
    assert brought["updates"]  # in pieces, where it is beyond what the fleet is used to
    assert not brought["waits"]


def test_an_interrupted_training_keeps_its_place_in_the_fleet(run, ready, coordinator):
    run("join", coordinator.invite())
    run("train", "--steps", 4)
    saved = checkpoint.load(ready / "state")
    joined, number, _ = saved[1]["fleet_mark"].split("/")
    folder = FleetFolder(homes.locate())
    assert (joined, int(number)) == (folder.membership().joined, folder.standing().number)


def test_a_device_leaves_and_joins_another_fleet(run, ready, coordinator):
    run("join", coordinator.invite("here"))
    assert "comigs-coordinator revoke here" in run("leave").stdout
    assert "belongs to no fleet" in run("sync", code=1).stderr
    run("join", coordinator.invite())


def test_a_link_on_standard_input_stands_in_no_command_line(run, ready, coordinator):
    found = json.loads(run("join", "-", "--json", input=f"{coordinator.invite('typed')}\n").stdout)
    assert found["name"] == "typed"
    assert "the invitation is empty" in run("join", "-", input="", code=1).stderr


def test_bad_links_are_one_sentence(run, ready, coordinator):
    for link, part in (
        ("hello", "is no invitation"),
        ("http://127.0.0.1:1#abc", "not of the form"),
        (f"{coordinator.address}#abcd", "its code is incomplete"),
    ):
        result = run("join", link, code=1)
        assert part in result.stderr
        assert result.stderr.count("\n") == 1
    link = coordinator.invite()
    changed = link[:-4] + ("AAAA" if not link.endswith("AAAA") else "BBBB")
    assert "shows another key" in run("join", changed, code=1).stderr


def test_a_device_with_another_model_is_told_what_to_change(run, ready, coordinator, tmp_path, monkeypatch):
    run("join", coordinator.invite())
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(tmp_path / "other"))
    run("init", "--base", ready / "base.gguf", "--expert-form", "lora")
    error = run("join", coordinator.invite(), code=1).stderr
    assert "this fleet trains parallel experts" in error
    assert "set the same [model] in config.toml" in error


def test_going_back_makes_an_older_generalist_the_newest_version(run, ready, coordinator):
    run("join", coordinator.invite())
    for _ in range(3):
        run("train", "--steps", 2)
        coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1)
    run("sync")
    result = run("rollback")
    assert "went back to generalist" in result.stdout
    manifest = read_manifest(ready / "adapters", versions(ready / "adapters")[-1])
    assert manifest["generalist"] == FleetFolder(homes.locate()).standing().trained_from
    assert manifest["validation_loss"] is manifest["validation_loss_before"] is None  # nothing has measured it
    assert run("models", "list").stdout
    assert "is not kept" in run("rollback", "--to", 99, code=1).stderr


def test_in_a_fleet_an_earlier_version_counts_nothing_twice(run, ready, coordinator):
    run("join", coordinator.invite())
    for _ in range(2):
        run("train", "--steps", 2)
        coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1)
    run("sync")
    before = run("status", "--json").stdout
    assert "comigs-edge rollback" in run("models", "use", versions(ready / "adapters")[0]).stderr.replace("\n", " ")
    assert "there is nothing new" in run("sync").stdout
    assert json.loads(run("status", "--json").stdout)["fleet"] == json.loads(before)["fleet"]


def test_a_revoked_device_trains_on_alone(run, ready, coordinator):
    run("join", coordinator.invite("lost"))
    coordinator.ask("revoke", name="lost")
    result = run("train", "--steps", 2, "--json")
    assert json.loads(result.stdout)["finished"]
    assert "lost was removed from the fleet" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize("name", ["membership.json", "standing.safetensors", "../device.key"])
def test_a_training_goes_on_with_damaged_files_of_its_fleet(run, ready, coordinator, name):
    run("join", coordinator.invite())
    run("train", "--steps", 2)
    path = ready / "fleet" / name
    path.write_bytes(path.read_bytes()[:40])
    result = run("train", "--steps", 2, "--json")
    assert json.loads(result.stdout)["finished"]
    said = result.stderr.replace("\n", " ")
    said_of = {"membership.json": "is made anew", "standing.safetensors": "it was set aside"}
    assert said_of.get(name, "the training goes on alone") in said


def test_a_lost_key_is_said_and_no_other_is_made(run, ready, coordinator):
    run("join", coordinator.invite())
    (ready / "device.key").unlink()
    assert "device.key is gone; restore it from a backup, or join again" in run("sync", code=1).stderr.replace("\n", " ")
    assert not (ready / "device.key").exists()
    run("join", coordinator.invite("again"))
    run("sync")
