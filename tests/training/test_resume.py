"""A training that is killed or stopped resumes and ends with the same bits."""

import json
import os
import pty
import random
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from comigs_edge.training import checkpoint
from tests import warm
from tests.tiny import some_text


def words(*arguments):
    # The same library every time: on a busy machine the measurement at the start may choose now one, now the other.
    return ["-m", "comigs_edge", "train", "--json", "--plan", "backend=blas", "--plan", "threads=1", *arguments]


def command(*arguments):
    return [sys.executable, *words(*arguments)]


def generations(home):
    return sorted(path.name for path in (home / "state").glob("checkpoint-*"))


def finish(*arguments):
    done = warm.run(words(*arguments), check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def slow_steps(home):
    """Steps long enough to be hit, and a checkpoint after each."""
    settings = home / "config.toml"
    text = settings.read_text().replace("batch = 4\ncontext = 64\n", "batch = 16\ncontext = 128\ncheckpoint_minutes = 0.0\n")
    settings.write_text(text)


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.torture)])
def test_kills_at_random_moments_end_with_the_same_hash(ready, kills):
    slow_steps(ready)
    steps, rng = 2 * kills + 2, random.Random(0)
    straight = finish("--steps", str(steps))
    assert straight["expert_steps"] == steps
    for path in (ready / "state").glob("checkpoint-*"):
        path.unlink()
    for version in (ready / "adapters").iterdir():
        version.rename(ready / version.name)  # out of the way: both start from the bare base
    for _ in range(kills):
        seen = generations(ready)
        process = warm.Process(words("--steps", str(steps)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while generations(ready) == seen and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.1)  # in the middle of a step, of a write, of anything
        assert process.poll() is None, "the training ended before it was killed so often"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resumed = finish("--resume")
    assert resumed["finished"]
    assert resumed["adapters_sha256"] == straight["adapters_sha256"]
    assert resumed["best_sha256"] == straight["best_sha256"]
    assert resumed["validation_loss"] == straight["validation_loss"]


def test_ctrl_c_and_sigterm_save_and_exit_0_with_the_command_that_resumes(ready):
    slow_steps(ready)
    for number in (signal.SIGINT, signal.SIGTERM):
        seen = generations(ready)
        process = warm.Process(words("--steps", "500"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while generations(ready) == seen:
            time.sleep(0.01)
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        result = json.loads(out)
        assert not result["finished"]
        assert result["next"] == "comigs-edge train --resume"


def test_a_lost_terminal_ends_a_training_like_ctrl_c(ready):
    slow_steps(ready)
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(sys.executable, command("--steps", "500"))
    while not generations(ready):
        with suppress(BlockingIOError):
            os.set_blocking(terminal, False)
            os.read(terminal, 65536)
        time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not checkpoint.load(ready / "state").progress["finished"]


def test_ctrl_c_while_loading_says_that_no_step_was_trained(ready):
    process = warm.Process(words("--steps", "500"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (ready / "state" / "holder.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "stopped by Ctrl-C while loading: no step was trained" in process.communicate(timeout=60)[1]
    # A shell says 130 to both: CPython ends by the signal where the interruption came through `exec` of a string.
    assert process.returncode in (130, -signal.SIGINT)
    assert not generations(ready)


def test_ctrl_c_on_a_pipeline_saves_though_nobody_reads_any_more(ready):
    slow_steps(ready)
    line = f"{shlex.join(command('--steps', '500'))} 2>&1 | cat; echo ${{PIPESTATUS[0]}}"
    process = subprocess.Popen(["bash", "-c", f"trap : INT; {line}"], start_new_session=True, stdout=subprocess.PIPE, text=True)
    while not generations(ready):
        time.sleep(0.01)
    seen = generations(ready)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[0].splitlines()[-1] == "0"
    assert generations(ready) != seen


@pytest.mark.parametrize(("before", "is_done"), [("", False), ("nohup", True)])
@pytest.mark.parametrize("pipe", ["2>&1 | head -1", "2> >(head -1 >/dev/null)"])
def test_a_pipe_that_closes_ends_a_training_like_ctrl_c_but_under_nohup(ready, before, is_done, pipe):
    slow_steps(ready)
    line = f"{before} {shlex.join(command('--steps', '3' if is_done else '500'))} {pipe}; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    progress = checkpoint.load(ready / "state").progress
    assert progress["finished"] == is_done
    assert progress["expert_steps"] >= 1


def test_a_training_resumed_on_another_text_compares_no_losses_of_two_texts(ready, run, tmp_path):
    slow_steps(ready)
    process = warm.Process(words("--steps", "500"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not generations(ready):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    before = checkpoint.load(ready / "state").progress
    (tmp_path / "text" / "more.txt").write_text("Another text that nobody has read here yet.\n\n" * 3 + some_text()[::-1])
    run("data", "add", tmp_path / "text")
    process = warm.Process(words("--steps", "500"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seen = generations(ready)
    while generations(ready) == seen:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert "has changed since this training began" in errors
    after = checkpoint.load(ready / "state").progress
    assert after["expert_steps"] > before["expert_steps"]
    assert after["first_loss"] != before["first_loss"]
