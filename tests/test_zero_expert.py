"""What a person sees of the zero expert: in the plan, after a training, in an evaluation, in the exported file."""

import json
from pathlib import Path

import pytest

from comigs_edge.home.folder import Home
from comigs_edge.home.versions import read_manifest
from quantize.gguf_file import GGUFFile

STEPS = ("train", "--steps", "4", "--plan", "threads=1", "--plan", "precision=float32")


def test_a_training_says_what_is_lost_elsewhere_and_an_evaluation_measures_the_same(ready, run):
    first = run(*STEPS, "--json")
    assert "the base writes 448 tokens of its own answers" in first.stderr
    trained, evaluated = json.loads(first.stdout), json.loads(run("evaluate", "--json").stdout)
    assert trained["elsewhere"].keys() == {"change", "divergence"}
    assert trained["elsewhere"] == pytest.approx(evaluated["elsewhere"], rel=1e-3)
    again = run(*STEPS, "--fresh")
    assert "the base writes" not in again.stderr  # it has written
    assert "with the zero expert" in again.stdout
    assert "elsewhere, on answers of the base itself: " in again.stdout
    assert "elsewhere, on answers of the base itself: " in run("evaluate").stdout


def test_the_exported_file_of_a_training_has_the_zero_expert(ready, run):
    assert json.loads(run(*STEPS, "--json").stdout)["zero_expert"]
    exported = json.loads(run("export", "--json").stdout)
    assert GGUFFile(Path(exported["path"])).metadata["granitemoe.expert_count"] == 3


def test_a_line_of_the_plan_turns_it_off(ready, run):
    assert "the router learns when the base should speak alone" in run("plan", "--no-measure").stdout
    assert json.loads(run("plan", "--no-measure", "--json", "--plan", "zero_expert=false").stdout)["plan"]["zero_expert"] is False
    trained = json.loads(run(*STEPS, "--plan", "zero_expert=false", "--json").stdout)
    assert trained["elsewhere"] is None
    assert not trained["zero_expert"]
    assert not read_manifest(Home(ready).adapters, 1)["layout"]["zero_expert"]
    assert json.loads(run("evaluate", "--json").stdout)["elsewhere"]["divergence"] > 0


@pytest.mark.parametrize("ready", ["lora"], indirect=True)
def test_lora_experts_have_none_and_what_they_lose_elsewhere_is_measured(ready, run):
    assert json.loads(run("plan", "--no-measure", "--json").stdout)["plan"]["zero_expert"] is False
    assert "only parallel experts can have one" in run(*STEPS, "--plan", "zero_expert=true", code=1).stderr
    assert json.loads(run(*STEPS, "--json").stdout)["elsewhere"] is None
    assert json.loads(run("evaluate", "--json").stdout)["elsewhere"]["divergence"] > 0
