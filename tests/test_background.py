"""A training that runs elsewhere: begun without a terminal, seen, followed and ended from another process."""

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest

from comigs_edge.home import holder
from comigs_edge.home.folder import locate
from comigs_edge.training.run import TrainingRun
from tests import warm

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def no_dead_children():
    """Whoever starts a training in the background ends soon, and its children are init's; here it lives on."""
    yield
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def wait_for(condition):
    begin = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() - begin < PATIENCE, "it did not come"
        time.sleep(0.05)
    return found


@pytest.fixture
def training(run, ready):
    """A long training in the background; ended if the test has not done so."""
    started = json.loads(run("train", "--background", "--steps", 100000, "--json").stdout)
    yield started
    if holder.present(locate().holder_file) is not None:
        run("train", "--stop", "--json")


def progress():
    running = holder.present(locate().holder_file)
    return running and running.progress


def test_a_training_goes_on_in_a_session_of_its_own_and_status_sees_it(run, training):
    wait_for(lambda: progress() and progress().expert_steps >= 2)
    facts = json.loads(run("status", "--json").stdout)
    assert facts["running"]["process"] == training["process"]
    assert facts["running"]["progress"]["steps"] == 100000
    assert facts["next"] == "comigs-edge status --follow"
    assert os.getsid(training["process"]) != os.getsid(0)
    assert f"process {training['process']}" in run("status").stdout


def test_a_stopped_training_is_saved_and_continued(run, training):
    wait_for(lambda: progress() and progress().expert_steps >= 2)
    os.kill(training["process"], signal.SIGUSR1)  # the word of --stop, here twice
    run("train", "--stop", code=None)  # it may have ended already
    wait_for(lambda: holder.present(locate().holder_file) is None)
    facts = json.loads(run("status", "--json").stdout)
    assert facts["running"] is None
    assert facts["training"]["state"] == "interrupted"
    assert facts["training"]["expert_steps"] >= 2
    assert facts["next"] == "comigs-edge train --resume"


def test_who_follows_a_training_ends_only_the_watching(training, ready):
    watcher = warm.Process(["-m", "comigs_edge", "status", "--follow"], stderr=subprocess.PIPE, text=True)
    assert "step" in wait_for(lambda: watcher.stderr.readline())
    watcher.send_signal(signal.SIGINT)
    assert "the training goes on" in watcher.communicate(timeout=PATIENCE)[1]
    assert holder.present(locate().holder_file).process == training["process"]


def test_following_ends_with_the_training(run, ready):
    run("train", "--background", "--steps", 3)
    assert "comigs-edge chat" in run("status", "--follow").stdout
    assert "trained: validation loss" in locate().log_file.read_text()


def test_a_second_training_is_refused_before_a_process_starts(run, training):
    message = run("train", "--background", code=1).output
    assert f"process {training['process']}" in message
    assert "comigs-edge train --stop" in message


def test_a_training_that_cannot_begin_says_why_at_once(run, ready):
    assert "no interrupted training" in run("train", "--background", "--resume", code=1).output


def test_a_killed_training_runs_no_more(run, training):
    os.kill(training["process"], signal.SIGKILL)
    wait_for(lambda: holder.present(locate().holder_file) is None)
    assert json.loads(run("status", "--json").stdout)["running"] is None
    assert "no training runs" in run("train", "--stop", code=1).output


def test_too_little_text_starts_nothing_and_names_what_is_missing(run, home, tiny_path):
    run("init", "--base", tiny_path)
    assert "too little" in run("train", "--background", code=1).output
    assert json.loads(run("status", "--json").stdout)["next"] == "comigs-edge data add FOLDER"


def test_a_suspended_training_is_called_so_and_can_be_stopped(run, training):
    wait_for(lambda: progress() and progress().expert_steps >= 2)
    os.kill(training["process"], signal.SIGSTOP)
    wait_for(lambda: json.loads(run("status", "--json").stdout)["running"]["suspended"])
    assert "suspended (fg, or kill -CONT)" in run("status").stdout
    run("train", "--stop")
    assert json.loads(run("status", "--json").stdout)["training"]["state"] == "interrupted"


def test_a_word_of_stop_that_comes_while_all_is_saved_does_not_end_the_process(run, ready, monkeypatch):
    end, handlers = TrainingRun.end, []

    def watched(self):
        handlers.extend(signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGHUP))
        return end(self)

    monkeypatch.setattr(TrainingRun, "end", watched)
    run("train", "--steps", 2)
    assert len(handlers) == 2
    assert signal.SIG_DFL not in handlers
