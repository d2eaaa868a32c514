"""Every token that a device trained on is counted once by its fleet, whenever the training is killed and however it goes on."""

import json
import random
import signal
import subprocess
import time

import pytest

from tests import warm
from tests.coordinator.rig import Coordinator
from tests.training.test_resume import generations, words

ROW = 4 * 64  # tokens of a step


@pytest.fixture
def coordinator(tmp_path):
    running = Coordinator(tmp_path / "coordinator", local_steps=3)
    yield running
    running.stop()


def counted(coordinator):
    return sum(row["tokens"] or 0 for row in coordinator.rounds())


def sync_until_quiet(run, coordinator):
    before = -1
    while counted(coordinator) != before:
        before = counted(coordinator)
        coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1)
        run("sync")


@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.torture)])
def test_a_training_that_is_killed_at_random_moments_brings_no_token_less_than_it_trained_on(run, ready, coordinator, kills):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("context = 64\n", "context = 64\ncheckpoint_minutes = 0.0\n"))
    run("join", coordinator.invite())
    steps, rng = 4 * kills, random.Random(0)
    for _ in range(kills):
        seen = generations(ready)
        process = warm.Process(words("--steps", str(steps)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while generations(ready) == seen and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        assert process.poll() is None, "the training ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    found = json.loads(run("train", "--resume", "--json").stdout)
    assert found["finished"]
    sync_until_quiet(run, coordinator)
    assert steps * ROW <= counted(coordinator) <= (steps + kills * 3) * ROW
