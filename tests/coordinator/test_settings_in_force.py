"""A coordinator in a process of its own: its settings outlive their file, and it says what its rounds wait for."""

import re
import ssl
import subprocess
import urllib.request
from pathlib import Path

import pytest

from coordinator.protocol.messages import State
from tests import warm
from tests.coordinator.rig import Coordinator, Member, random_arrays


@pytest.fixture
def coordinator(tmp_path):
    running = Coordinator(tmp_path / "data", goal=1)
    yield running
    if running.process.poll() is None:
        running.kill()


def said(coordinator, *arguments):
    words = ["-m", "coordinator", *arguments, "--data", coordinator.data]
    return warm.run(words, capture_output=True, text=True).stdout


def log(coordinator):
    return Path(coordinator.log.name).read_text()


def begin_with(coordinator, text):
    """The same coordinator with another config.toml, and without flags; a text of None is no file."""
    assert coordinator.stop() == 0
    path = coordinator.data / "config.toml"
    path.unlink() if text is None else path.write_text(text)
    coordinator.flags = {}
    coordinator.restart()


@pytest.mark.parametrize("text", [None, "", "\0" * 300])
def test_without_its_file_a_coordinator_goes_on_with_the_settings_that_were_in_force(coordinator, text):
    begin_with(coordinator, "[rounds]\nmin_devices = 3\n")
    assert "setting changed since the last start: rounds.min_devices = 3, it was 1" in log(coordinator)
    begin_with(coordinator, text)
    sentence = "config.toml is gone or empty; the settings of the last start are in force: rounds.min_devices = 3"
    assert sentence in log(coordinator)
    assert coordinator.ask("status")["notes"] == [sentence]
    assert sentence in said(coordinator, "status")
    path = coordinator.data / "config.toml"
    assert (path.read_text() if path.exists() else None) == text
    assert coordinator.stop() == 0
    assert sentence in said(coordinator, "status")


def test_a_backup_holds_the_settings_in_force_where_their_file_is_gone(coordinator, tmp_path):
    begin_with(coordinator, "[rounds]\nmin_devices = 3\n")
    begin_with(coordinator, None)
    coordinator.command("backup", str(tmp_path / "x.tar"))
    text = subprocess.run(["tar", "-xOf", tmp_path / "x.tar", "config.toml"], capture_output=True, text=True, check=True).stdout
    assert re.search("^min_devices = 3", text, re.MULTILINE)


def test_a_round_that_waits_for_more_devices_says_so_to_its_owner_and_to_devices(coordinator):
    begin_with(coordinator, "[rounds]\nmin_devices = 3\n")
    first, second = (Member(coordinator.invite(name)) for name in ("kitchen-pi", "attic-pi"))
    first.push(random_arrays(1))
    coordinator.until(lambda status: status["newest_round"] == 0)
    assert [first.remote.state().waits_for for _ in range(2)] == [3, 3]
    first.push(random_arrays(2))
    second.push(random_arrays(3))
    assert second.remote.state().waits_for == 1
    sentence = "round 1 waits: 2 of 3 devices have sent; the fleet has 2: invite more, or set min_devices"
    status = coordinator.ask("status")
    assert (status["waits_for"], status["notes"]) == (1, [sentence])
    assert sentence in said(coordinator, "status")
    with urllib.request.urlopen(coordinator.address, context=ssl._create_unverified_context()) as page:
        assert sentence in page.read().decode()
    third = Member(coordinator.invite("garden-pi"))
    third.push(random_arrays(4))
    coordinator.until(lambda status: status["newest_round"] == 1)
    assert third.remote.state().waits_for == 3


def test_where_one_device_is_enough_nothing_waits_and_nothing_is_sent_of_it(coordinator):
    member = Member(coordinator.invite())
    member.push(random_arrays(1))
    coordinator.until(lambda status: status["newest_round"] == 0)
    assert b"waits_for" not in member.remote.call("GET", "/v1/state").content
    assert State.__struct_defaults__[-1] == 0
    assert coordinator.ask("status")["notes"] == []


def test_what_restores_a_backup_names_the_port_that_the_coordinator_has(coordinator, tmp_path):
    assert f"comigs-coordinator serve --data DIR --port {coordinator.port}\n" in said(coordinator, "backup", tmp_path / "x.tar")
    then = f"comigs-coordinator status --data {coordinator.data}"
    assert said(coordinator, "check") == f"everything that is kept is sound\n\nnext: {then}\n"
