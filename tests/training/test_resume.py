"""A training that is killed or stopped resumes and ends with the same bits."""

import json
import random
import signal
import subprocess
import sys
import time

STEPS = 20


def command(*arguments):
    # The same library every time: on a busy machine the measurement at the start may choose now one, now the other.
    return [sys.executable, "-m", "comigs_edge", "train", "--json", "--plan", "backend=blas", "--plan", "threads=1", *arguments]


def generations(home):
    return sorted(path.name for path in (home / "state").glob("checkpoint-*"))


def finish(*arguments):
    done = subprocess.run(command(*arguments), check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def slow_steps(home):
    """Steps long enough to be hit, and a checkpoint after each."""
    settings = home / "config.toml"
    text = settings.read_text().replace("batch = 4\ncontext = 64\n", "batch = 16\ncontext = 128\ncheckpoint_minutes = 0.0\n")
    settings.write_text(text)


def test_ten_kills_at_random_moments_end_with_the_same_hash(ready):
    slow_steps(ready)
    straight = finish("--steps", str(STEPS))
    assert straight["expert_steps"] == STEPS
    rng, kills = random.Random(0), 0
    for path in (ready / "state").glob("checkpoint-*"):
        path.unlink()
    for version in (ready / "adapters").iterdir():
        version.rename(ready / version.name)  # out of the way: both start from the bare base
    while kills < 10:
        seen = generations(ready)
        process = subprocess.Popen(command("--steps", str(STEPS)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while generations(ready) == seen and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.1)  # in the middle of a step, of a write, of anything
        assert process.poll() is None, "the training ended before it was killed ten times"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    resumed = finish("--resume")
    assert resumed["finished"]
    assert resumed["adapters_sha256"] == straight["adapters_sha256"]
    assert resumed["best_sha256"] == straight["best_sha256"]
    assert resumed["validation_loss"] == straight["validation_loss"]


def test_ctrl_c_and_sigterm_save_and_exit_0_with_the_command_that_resumes(ready):
    slow_steps(ready)
    for number in (signal.SIGINT, signal.SIGTERM):
        seen = generations(ready)
        process = subprocess.Popen(command("--steps", "500"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while generations(ready) == seen:
            time.sleep(0.01)
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        result = json.loads(out)
        assert not result["finished"]
        assert result["next"] == "comigs-edge train --resume"
