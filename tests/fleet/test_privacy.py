"""`comigs-edge privacy`: who can learn what of a device as it is now, and what has left it, against what a coordinator has."""

import json
import re
from dataclasses import replace

import pytest

from comigs_edge.commands.privacy import MODES
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.leaving import STAYS, leaving
from comigs_edge.fleet.lookers import LOOKERS
from comigs_edge.fleet.privacy import privacy
from comigs_edge.home import folder as homes
from comigs_edge.home.config import BaseConfig, Config
from coordinator.protocol.private.messages import LEAST
from tests.docs_commands import ROOT
from tests.fleet.test_private import fleet_of, learn, publish, run_to, touch

SETTINGS = Config(base=BaseConfig(name="tiny", sha256="ab" * 32, size=1))
FORBIDDEN = re.compile(r"anonym|(cannot|can not|never) (learn|read|see)|learns? nothing", re.I)


def shown(run):
    """Facts and text of the command."""
    text = run("privacy").stdout
    assert not FORBIDDEN.search(text)
    return json.loads(run("privacy", "--json").stdout), " ".join(re.sub("[│┃]", " ", text).split())


def test_without_a_fleet_it_says_that_nothing_has_left_and_who_can_look_all_the_same(run, ready):
    found, text = shown(run)
    assert (found["mode"], found["fleet"], found["left"], found["leaves"], found["in_the_clear"]) == (
        "no fleet",
        None,
        [],
        [],
        [],
    )
    assert [each["who"] for each in found["who"]] == [each.who for each in LOOKERS if each.is_always]
    assert "has left nothing, to any fleet" in text
    assert all(thing in text for thing in STAYS)


def test_in_a_fleet_its_receipts_are_what_the_coordinator_counted(run, ready, coordinator):
    run("join", coordinator.invite("kitchen-pi"))
    run("train", "--steps", "8")
    run("sync")
    found, text = shown(run)
    assert (found["mode"], found["fleet"]["name"]) == ("fleet", "kitchen-pi")
    assert found["leaves"] == json.loads(json.dumps(leaving(False)))
    assert {"who": LOOKERS[1].who, "learns": "each device's update"} in found["who"]
    [left] = found["left"]
    counted = [row for row in coordinator.rounds() if row["updates"]]
    assert left["bytes_sent"] == sum(row["bytes_in"] for row in counted) > 0
    assert [each["round"] for each in left["receipts"]] == [row["number"] for row in counted[1:]]  # the first is an initial one
    for line in (*found["in_the_clear"], *(each["what"] for each in found["leaves"])):
        assert line in text


def test_what_went_to_a_fleet_that_was_left_is_said_afterwards(run, ready, coordinator):
    run("join", coordinator.invite("kitchen-pi"))
    run("train", "--steps", "8")
    [before] = shown(run)[0]["left"]
    run("leave")
    found, text = shown(run)
    assert found["mode"] == "no fleet"
    assert found["left"] == [before | {"is_present": False}]
    assert f"to the fleet at {coordinator.address}, which this device has left and which keeps what it has" in text
    assert json.loads(run("report", "--json").stdout)["left"] == found["left"]
    assert "shared: nothing" not in run("report").stdout


def test_in_a_private_fleet_it_names_n_t_and_least_of_the_windows_on_their_way(private, tmp_path):
    devices = fleet_of(private, tmp_path, 4)
    assert privacy(devices[0].home, SETTINGS)["sums"]["windows"] == []
    learn(devices)
    run_to(private, devices, "masked")
    found = privacy(devices[0].home, SETTINGS)
    assert found["mode"] == "private fleet"
    assert found["sums"]["threshold"] == {"3": 3, "5": 4, "10": 7, "50": 34}  # more than two thirds
    [window] = found["sums"]["windows"]
    assert (window["devices"], window["threshold"], window["least"]) == (4, 3, LEAST)
    for path in devices[0].folder.windows.glob(".*.seed"):
        assert path.read_text() not in json.dumps(found)
    assert not any("tokens" in line for line in found["in_the_clear"])
    publish(private, devices, 1)
    touch(devices)
    found = privacy(devices[0].home, SETTINGS)
    assert not [each for each in found["sums"]["windows"] if each["window"] == window["window"]]
    masked = 4 * sum(array.size for array in devices[0].books.standing.reference.values())
    sent = [privacy(device.home, SETTINGS)["left"][0]["bytes_sent"] for device in devices]
    assert sent[1:] == [masked] * 3  # the first brought the initial generalist too


def test_a_home_that_flare_carries_is_told_that_its_server_reads_updates(run, ready, coordinator):
    run("join", coordinator.invite("kitchen-pi"))
    folder = FleetFolder(homes.locate())
    folder.save_membership(replace(folder.membership(), address=""))
    found, text = shown(run)
    assert found["mode"] == "FLARE"
    assert {"who": "whoever runs the server of NVIDIA FLARE, where that carries the fleet", "learns": "each device's update"} in (
        found["who"]
    )
    assert "client sends what it needs of its own" in text


def test_no_mode_is_called_anonymous_or_safe():
    said = [*MODES.values(), *(text for each in LOOKERS for text in (each.who, each.in_a_fleet, each.in_a_private_fleet))]
    assert not any(FORBIDDEN.search(text) for text in said)


def test_the_published_table_of_who_learns_what_is_the_commands():
    page = (ROOT / "docs" / "privacy.md").read_text().split("<!-- who learns -->")[1].split("<!-- end")[0]
    plain = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", page).replace("*", "")
    rows = [tuple(map(str.strip, line.strip("|").split("|"))) for line in plain.strip().splitlines()[2:]]
    assert rows == [(each.who, each.in_a_fleet, each.in_a_private_fleet) for each in LOOKERS]


@pytest.mark.parametrize("flaw", ["[]", "{", None])
def test_a_damaged_membership_is_made_anew_and_said(run, ready, coordinator, flaw):
    run("join", coordinator.invite("kitchen-pi"))
    run("train", "--steps", "4")
    path = ready / "fleet" / "membership.json"
    path.unlink() if flaw is None else path.write_text(flaw)
    result = run("privacy")
    assert "membership.json" in result.stderr
    assert "as kitchen-pi" in result.stdout
