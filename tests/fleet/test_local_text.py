"""Local text in a fleet: what a device brings is the same to the last bit with and without it."""

import shutil

import pytest

from comigs_edge.home.folder import Home
from comigs_edge.home.versions import read_manifest, versions
from tests.coordinator.rig import Coordinator

DIARY = "the red kite flies over the old mill at dawn and nobody sees it but the miller and his cat . " * 60


@pytest.fixture
def bring(run, tmp_path, monkeypatch):
    """The SHA-256 of all generalists of a fleet of this one device, after two trainings."""

    def act(home):
        monkeypatch.setenv("COMIGS_EDGE_HOME", str(home))
        coordinator = Coordinator(tmp_path / f"{home.name}-fleet", update_format="float32", local_steps=4, goal=1)
        run("join", coordinator.invite(home.name))
        for newest in (1, 2):
            run("train", "--steps", "4", "--plan", "threads=1")
            run("sync")
            coordinator.until(lambda status, newest=newest: status["newest_round"] >= newest)
        shared = [each["sha256"] for each in coordinator.rounds()[:3]]
        coordinator.stop()
        return shared

    return act


def test_every_generalist_is_the_same_with_and_without_local_text(bring, ready, run, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(ready, other)
    expected = bring(ready)
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(other))
    (tmp_path / "diary.txt").write_text(DIARY)
    run("data", "add", "--local", tmp_path / "diary.txt")
    assert bring(other) == expected
    made = [read_manifest(Home(other).adapters, version) for version in versions(Home(other).adapters)]
    assert any("shared_sha256" in manifest for manifest in made)
