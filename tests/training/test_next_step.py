"""What every command says comes next: the same as `status`, and nothing that refuses."""

import json
import shutil
import subprocess
import sys

import psutil
import pytest

from comigs_edge.data.corpus import Corpus
from comigs_edge.home.folder import Home
from comigs_edge.training import checkpoint
from tests.tiny import some_text, write_llama

FAST = ("--plan", "batch=4", "--plan", "context=64")


def said_next(result):
    return result.stdout.splitlines()[-1].removeprefix("next: ")


@pytest.fixture
def ready(run, home, tiny_path, tmp_path):
    """A home with three files of text."""
    run("init", "--base", tiny_path)
    for seed in range(3):
        (tmp_path / f"{seed}.txt").write_text(some_text(seed=seed))
        run("data", "add", tmp_path / f"{seed}.txt")
    return Home(home)


def interrupt(home):
    """Makes the state of a finished training that of one that was interrupted."""
    arrays, progress, _ = checkpoint.load(home.state)
    checkpoint.save(home.state, arrays, progress | {"finished": False})


def test_after_a_removal_under_an_interrupted_training_all_say_to_start_anew(ready, run):
    run("train", "--steps", 4, *FAST)
    interrupt(ready)
    assert said_next(run("status")) == said_next(run("data", "list")) == "comigs-edge train --resume"
    assert said_next(run("data", "remove", 3)) == "comigs-edge train --fresh"
    status = run("status")
    assert said_next(status) == said_next(run("data", "list")) == "comigs-edge train --fresh"
    assert "text that was removed was learned by adapters 0001, the state of the training;" in status.stdout
    assert said_next(run("data", "remove", "--learned")) == said_next(run("status")) == "comigs-edge train"
    assert "removed was learned" not in run("status").stdout


def test_the_plan_of_an_interrupted_training_is_of_what_is_left_of_it(ready, run):
    run("train", "--steps", 4, *FAST)
    new = json.loads(run("plan", "--json", *FAST).stdout)["plan"]
    assert new["steps_done"] == 0
    arrays, progress, _ = checkpoint.load(ready.state)
    progress["schedule"]["steps"] = 900
    checkpoint.save(ready.state, arrays, progress | {"finished": False})
    left = json.loads(run("plan", "--json", *FAST).stdout)["plan"]
    assert (left["steps"], left["steps_done"]) == (900, 4)
    assert left["minutes"] / left["step_seconds"] > 2 * new["minutes"] / new["step_seconds"]
    assert "the last 896 of 900 expert steps and their router steps" in " ".join(run("plan", *FAST).stdout.split())
    progress["schedule"]["steps"] = 4
    del progress["closing"]
    checkpoint.save(ready.state, arrays, progress | {"finished": False})
    assert "the last router steps, " in " ".join(run("plan", *FAST).stdout.split())


def test_beside_a_training_that_runs_the_plan_says_how_far_that_one_is(ready, run):
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        facts = {"process": running.pid, "command": "train", "since": "2026-11-28 10:00"}
        progress = {"phase": "expert", "expert_steps": 12, "steps": 50, "seconds_left": 240.0}
        held = facts | {"started": psutil.Process(running.pid).create_time(), "progress": progress}
        ready.holder_file.write_text(json.dumps(held))
        plan = run("plan", *FAST)
        assert "a training runs now: expert, step 12 of 50, 4.0 minutes left; another one would be:" in plan.stdout
        assert said_next(plan) == "comigs-edge status --follow"
        assert json.loads(run("plan", "--json", *FAST).stdout)["running"]["progress"]["expert_steps"] == 12
    finally:
        running.communicate(b"\n")
    assert "runs now" not in run("plan", *FAST).stdout
    assert json.loads(run("plan", "--json", *FAST).stdout)["running"] is None


def test_the_plan_counts_what_is_left_of_router_closing_phase_and_local_text(ready, run, tmp_path):
    (tmp_path / "diary.txt").write_text(some_text(seed=5))
    run("data", "add", "--local", tmp_path / "diary.txt")
    run("train", "--steps", 4, *FAST)
    arrays, progress, _ = checkpoint.load(ready.state)
    phases = {name: progress[name] for name in ("closing", "local")}
    behind = {name: value for name, value in progress.items() if name not in phases} | {"finished": False}

    def left(**more):
        checkpoint.save(ready.state, arrays, behind | more)
        plan = json.loads(run("plan", "--json", *FAST).stdout)["plan"]
        return round(60 * plan["minutes"] / plan["step_seconds"], 6), plan["local_steps"]

    before, local = left(router_steps=0)
    due, closed = progress["router_steps"], phases["closing"]["router_steps"]
    assert due > 0 < local
    # Behind the router's turn is a validation, of 16 rows of 4 at a third of a step; the fit reads 32 of either text so.
    assert before - left()[0] == pytest.approx(due + 4 / 3 * behind["schedule"]["validation_rows"] / 16)
    assert left()[0] - left(closing=phases["closing"] | {"router_steps": 1})[0] == pytest.approx(1 + 16 / 3)
    assert left(closing=phases["closing"])[0] == 0
    done = phases["local"]["expert_steps"] + phases["local"]["router_steps"]
    assert left(**phases) == (0, max(0, local - done))
    assert closed > 1
    assert "last router steps" not in run("plan", *FAST).stdout


def test_a_model_of_removed_text_is_made_anew_and_another_one_chatted_with(ready, run):
    run("train", "--steps", 4, *FAST)
    assert said_next(run("status")) == "comigs-edge chat"
    assert said_next(run("data", "remove", 3)) == said_next(run("status")) == "comigs-edge train --fresh"
    assert said_next(run("train", "--fresh", "--steps", 4, *FAST)) == said_next(run("status")) == "comigs-edge chat"


def test_new_text_under_an_interrupted_training_goes_on_with_that(ready, run, tmp_path):
    run("train", "--steps", 4, *FAST)
    (tmp_path / "more.txt").write_text(some_text(seed=9))
    assert said_next(run("data", "add", tmp_path / "more.txt")) == "comigs-edge train"
    interrupt(ready)
    assert said_next(run("data", "add", tmp_path / "more.txt")) == said_next(run("status")) == "comigs-edge train --resume"


def test_where_no_sound_state_is_left_the_next_training_is_a_new_one(ready, run):
    run("train", "--steps", 2, *FAST)
    for path in ready.state.glob("checkpoint-*"):
        path.write_bytes(b"damaged")
    assert said_next(run("status")) == "comigs-edge train --fresh"


def test_without_text_the_next_command_adds_some(ready, run):
    for source in Corpus(ready.documents_file).sources():
        said = said_next(run("data", "remove", source["id"]))
    assert said == said_next(run("status")) == said_next(run("data", "list")) == "comigs-edge data add FOLDER"


def test_an_interrupted_training_of_another_base_is_not_gone_on_with(ready, run, tmp_path):
    run("train", "--steps", 2, *FAST)
    interrupt(ready)
    said = said_next(run("init", "--force", "--base", write_llama(tmp_path / "other.gguf", seed=5)))
    assert said == said_next(run("status")) == said_next(run("plan")) == "comigs-edge train --fresh"
    assert json.loads(run("plan", "--json").stdout)["plan"]["steps_done"] == 0
    assert said_next(run("train", "--fresh", "--steps", 2, *FAST)) == "comigs-edge chat"


def test_settings_are_not_written_anew_under_a_training(ready, run):
    with ready.lock("train"):
        assert "comigs-edge train" in run("init", "--force", code=1).stderr


def test_a_plan_without_text_says_to_add_some(run, home, tiny_path):
    assert said_next(run("init", "--base", tiny_path)) == said_next(run("plan")) == "comigs-edge data add FOLDER"


@pytest.mark.parametrize(
    "content", [lambda manifest: manifest[: len(manifest) // 2], lambda manifest: b"[1]", lambda manifest: b"{}"]
)
def test_a_damaged_manifest_costs_its_version_and_no_training(ready, run, content):
    run("train", "--steps", 4, *FAST)
    path = ready.adapters / "0001" / "manifest.json"
    path.write_bytes(content(path.read_bytes()))
    assert f"delete the folder {path.parent} to return to the version before" in run("train", code=1).stderr
    assert said_next(run("train", "--fresh", "--steps", 4, *FAST)) == "comigs-edge chat"
    shutil.rmtree(path.parent)
    assert said_next(run("status")) == "comigs-edge chat"
