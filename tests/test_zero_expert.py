"""What a person sees of the zero expert: in the plan, after a training, in an evaluation, in the exported file."""

import json
from pathlib import Path

import pytest

from comigs_edge.commands.follow import line
from comigs_edge.home import holder
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import read_manifest
from quantize.gguf_file import GGUFFile

STEPS = ("train", "--steps", "25", "--plan", "threads=1", "--plan", "precision=float32")
ON, OFF = ("--plan", "zero_expert=true"), ("--plan", "zero_expert=false")


@pytest.mark.usefixtures("no_ordinary_text")
def test_a_training_says_what_is_lost_elsewhere_and_an_evaluation_measures_the_same(ready, run):
    first = run(*STEPS, *ON, "--json")
    assert "the base writes 682 tokens of its own answers" in first.stderr
    trained, evaluated = json.loads(first.stdout), json.loads(run("evaluate", "--json").stdout)
    assert trained["elsewhere"].keys() == {"change", "divergence"}
    assert trained["elsewhere"] == pytest.approx(evaluated["elsewhere"], rel=1e-3)
    again = run(*STEPS, *ON, "--fresh")
    assert "the base writes" not in again.stderr  # it has written
    assert "with the zero expert" in again.stdout
    assert "elsewhere, on answers of the base itself: " in again.stdout
    assert "elsewhere, on answers of the base itself: " in run("evaluate").stdout


@pytest.mark.usefixtures("no_ordinary_text")
def test_status_says_that_the_base_writes_before_a_training_has_a_step(ready, run, monkeypatch):
    said = []
    monkeypatch.setattr(holder, "tell", lambda _, progress: said.append(line(progress)))
    run(*STEPS)
    assert said[0] == "the base writes, 0 of 512 tokens, step 0 of 25"


def test_the_exported_file_of_a_training_has_the_zero_expert(ready, run):
    assert json.loads(run(*STEPS, *ON, "--json").stdout)["zero_expert"]
    exported = json.loads(run("export", "--json").stdout)
    assert GGUFFile(Path(exported["path"])).metadata["granitemoe.expert_count"] == 3


@pytest.mark.usefixtures("no_ordinary_text")
def test_where_it_is_turned_off_no_ordinary_text_is_written(ready, run):
    assert "yes                beside small experts it costs next to nothing" in run("plan", "--no-measure").stdout
    first = run(*STEPS, *OFF, "--json")
    trained = json.loads(first.stdout)
    assert "the base writes" not in first.stderr
    assert "elsewhere" not in trained
    assert trained["closing_steps"] == 0
    assert not read_manifest(Home(ready).adapters, 1)["layout"]["zero_expert"]
    assert "elsewhere" not in json.loads(run("evaluate", "--json").stdout)
    assert "which it writes once: comigs-edge evaluate --elsewhere" in run("evaluate").stdout.replace("\n", " ")
    assert not list(ready.rglob("ordinary-*"))
    assert json.loads(run("evaluate", "--elsewhere", "--json").stdout)["elsewhere"]["divergence"] > 0
    assert json.loads(run("evaluate", "--json").stdout)["elsewhere"]["divergence"] > 0  # now the answers are there


def test_a_training_says_where_the_model_has_lost_its_zero_expert_and_only_there(ready, run):
    run("train")
    assert "no zero expert any more" not in run("train").stdout  # nothing was trained
    assert "your model has no zero expert any more" in run(*STEPS, *OFF).stdout
    assert "no zero expert any more" not in run(*STEPS, *OFF).stdout


def test_a_training_has_one_until_it_is_turned_off_for_it_or_for_all(ready, run):
    assert json.loads(run("plan", "--no-measure", "--json").stdout)["plan"]["zero_expert"]
    assert json.loads(run(*STEPS, "--json").stdout)["closing_steps"] == 6  # 3 of 8 rows
    assert json.loads(run(*STEPS, *OFF, "--json").stdout)["closing_steps"] == 0
    assert json.loads(run(*STEPS, "--json").stdout)["closing_steps"] == 6  # 3 of 8 rows
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("[model]\n", "[model]\nzero_expert = false\n"))
    assert not json.loads(run("plan", "--no-measure", "--json").stdout)["plan"]["zero_expert"]
    assert not json.loads(run(*STEPS, "--json").stdout)["zero_expert"]


@pytest.mark.parametrize("ready", ["lora"], indirect=True)
def test_lora_experts_have_one_if_it_is_asked_for_and_keep_it_then(ready, run):
    assert "no                 it takes the base's MLP once more" in run("plan", "--no-measure").stdout
    assert "elsewhere" not in json.loads(run(*STEPS, "--json").stdout)
    assert json.loads(run("evaluate", "--elsewhere", "--json").stdout)["elsewhere"]["divergence"] > 0
    assert json.loads(run(*STEPS, *ON, "--json").stdout)["zero_expert"]
    assert json.loads(run(*STEPS, "--json").stdout)["zero_expert"]
    exported = json.loads(run("export", "--json").stdout)
    assert GGUFFile(Path(exported["path"])).metadata["llama.expert_count"] == 3
    assert "elsewhere" in json.loads(run("evaluate", "--json").stdout)
