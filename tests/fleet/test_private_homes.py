"""Whole homes in a private fleet, by their commands, and a device that is killed at every change of its disk."""

import json

import numpy as np
import pytest

from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.home import folder as homes
from coordinator.protocol import compress
from coordinator.protocol.aggregate import add_change, mean_change
from tests.coordinator.rig import SHAPES, Coordinator
from tests.fleet.killed import is_killed
from tests.fleet.rig import step
from tests.fleet.test_private import fleet_of, generalist, touch
from tests.tiny import some_text


@pytest.fixture
def private(tmp_path):
    running = Coordinator(tmp_path / "coordinator", private=True, local_steps=2)
    yield running
    running.stop()


def test_a_device_killed_at_any_change_of_its_disk_counts_once(private, tmp_path):
    devices = fleet_of(private, tmp_path, 3)
    for number, device in enumerate(devices):
        device.learn(step(number))
        device.books.keep(device.local, 100)
    victim, kills = devices[0], 0

    def live():
        victim.open()
        victim.local = victim.books.resume(victim.local, None)
        victim.exchange(tokens=0)

    while private.ask("status")["newest_round"] < 1:
        number = 1
        while is_killed(victim.folder.root, number, live):
            number += 1
        kills += number - 1
        touch(devices[1:])
        private.until(lambda status: status["newest_round"] == status["open_round"] - 1)
        assert kills < 1000
    live()
    touch(devices[1:])
    assert kills > 20
    assert [len(device.books.standing.brought) for device in devices] == [1, 1, 1]
    sent = [device.folder.brought(next(iter(device.books.standing.brought))).packed for device in devices]
    before, updates = generalist(private, 0), [(compress.unpack(each, SHAPES, "float16"), 1 << 16) for each in sent]
    expected, found = add_change(before, mean_change(before, updates)), generalist(private, 1)
    assert all(np.array_equal(found[name], expected[name]) for name in SHAPES)


def make_home(run, coordinator, base, folder, seed):
    """A home with its own text, in the fleet; the variable of the environment names it already."""
    run("init", "--base", base)
    home = homes.locate()
    settings = home.root / "config.toml"
    quick = "batch = 4\ncontext = 64\nrouter_period = 4\nrouter_steps = 2\nvalidation_rows = 4\n"
    quick += "closing_steps = 3\nordinary_tokens = 512\n"
    settings.write_text(settings.read_text().replace("[train]\n", f"[train]\n{quick}"))
    folder.mkdir()
    (folder / "notes.txt").write_text(some_text(seed=seed))
    run("data", "add", folder)
    shown = run("join", coordinator.invite()).stdout
    assert "learns only sums of 3 or more devices' updates" in shown.replace("\n", " ")
    return home


def test_three_homes_train_and_share_a_sum_although_one_is_killed(run, private, tiny_path, tmp_path, monkeypatch):
    places = [tmp_path / f"home-{number}" for number in range(3)]

    def use(number):
        monkeypatch.setenv("COMIGS_EDGE_HOME", str(places[number]))
        return places[number]

    for number in range(3):
        use(number)
        make_home(run, private, tiny_path, tmp_path / f"text-{number}", number)
    use(0)
    for number in range(3):
        use(number)
        run("train", "--steps", 4)
        private.until(lambda status: status["newest_round"] == 0)  # which the first of them brings
    for turn in range(12):
        if private.ask("status")["newest_round"] >= 1:
            break
        for number in (2, 1, 0):
            home = use(number)
            if number == 2 and turn == 1:
                assert is_killed(home, 4, lambda: run("sync"))
            run("sync")
        private.until(lambda status: status["newest_round"] == status["open_round"] - 1)
    assert private.rounds()[1]["devices"] == 3
    for number in range(3):
        use(number)
        found = json.loads(run("sync", "--json").stdout)
        assert not found["waits"]
        standing = FleetFolder(homes.locate()).standing()
        assert standing.trained_from >= 1
        assert len(standing.brought) >= 1
        preview = json.loads(run("sync", "--dry-run", "--json").stdout)
        assert preview["private"] is True
        assert {each["occasion"] for each in preview["leaves"]} >= {"a private window"}
