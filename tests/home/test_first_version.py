"""A home and a coordinator's folder as the first version (0.1.0 of 2026-11-24) left them, recorded from its own commands.

The home has trained twice in a fleet of two, with the base of `tests/tiny.py`; an update waits in its outbox for round 4.
"""

import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.coordinator.rig import Coordinator

RECORDED = Path(__file__).with_name("first_version.tar.xz")


@pytest.fixture
def recorded(tmp_path, home, tiny_path):
    with tarfile.open(RECORDED) as tar:
        tar.extractall(tmp_path, filter="data")
    shutil.copy(tiny_path, home / "base.gguf")
    running = Coordinator(tmp_path / "coordinator")
    membership = home / "fleet" / "membership.json"
    membership.write_text(membership.read_text().replace("https://127.0.0.1:18443", running.address))
    yield running
    running.stop()


def test_a_home_and_a_coordinator_of_the_first_version_go_on(run, home, recorded):
    before = json.loads(run("status", "--json").stdout)
    assert (before["training"]["expert_steps"], before["fleet"]["generalist"]) == (4, 2)
    said = run("train", "--steps", 2).stdout
    assert float(re.search(r"validation loss (\S+) before", said)[1]) == pytest.approx(7.244, rel=0.01)  # as it was left
    assert re.search(r"fleet: [12] updates? brought", said)  # the one that waited, and this training's where its round is open
    after = json.loads(run("status", "--json").stdout)
    assert after["adapters"]["version"] == 5
    assert after["adapters"]["validation_loss"] < 7.2
    assert "personal-0005" in json.loads(run("export", "--json").stdout)["path"]
    since = [each for made in recorded.command("rounds")["rounds"][4:] for each in made["updates"]]
    assert ("device-1", 512) in {(each["name"], each["tokens"]) for each in since}  # what waited
