"""The list of runs: equal terms for all, nothing computed twice, nothing half; and the figures of its table."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.evidence import work
from benchmarks.evidence.play import Ground, equal_terms, play
from benchmarks.evidence.runs import RATES, RECIPES, Run, all_runs, first_seed, length
from benchmarks.evidence.table import difference, markdown
from comigs_edge.simulate import recipe as recipes


@pytest.fixture
def ground(recipe_file, folder, tiny_path, monkeypatch):
    """The tiny base, and three devices in place of every recipe."""
    path = recipe_file()
    monkeypatch.setattr(recipes, "find", lambda name: path)
    return Ground(text=folder, base=tiny_path, size="quick", rounds=1, test_tokens=1000)


@pytest.mark.parametrize("run", first_seed(RECIPES[:1]), ids=lambda run: f"{run.label}-{run.rate:g}")
def test_every_method_computes_as_many_tokens_as_the_product(run, tiny_base):
    found = recipes.read(recipes.find(run.recipe))
    plan = equal_terms(run, found, found.size("quick"), tiny_base.hparams)
    schedule, layout = plan.schedule(tiny_base.hparams, 4), plan.layout(tiny_base.hparams, 1)
    steps = schedule.total_steps if layout.num_specialists else schedule.steps
    assert steps * schedule.batch == (50 + 20) * 4  # 50 expert steps, the router's ten after 30 and after 50
    assert schedule.validation_rows == 32


def test_a_record_has_settings_digests_losses_and_scores_by_window(ground):
    run = Run("", "three", "comigs-edge", 0.01, "parallel", seed=3)
    record = play(run, ground)
    assert Run(**record["run"]) == run
    schedule = record["settings"]["schedule"]
    assert (schedule["expert_learning_rate"], schedule["final_learning_rate"]) == (0.01, pytest.approx(0.001))
    assert record["settings"]["experts"]["form"] == "parallel"
    assert len(record["text"]) == len(record["base"]) == 64
    for device in record["devices"].values():
        bits = sum(device["window_nats"]) / np.log(2) / sum(device["window_bytes"])
        assert device["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
        assert len(device["window_nats"]) > 1


def test_what_is_done_is_not_computed_again_and_the_next_in_the_list_is(ground, tmp_path):
    done = {run: {"size": "quick.1"} for run in first_seed(RECIPES[:1])}
    assert [run for run in all_runs(RECIPES[:1], {}) if run not in done] == []
    record = play(Run("", "three", "local", 0.01), ground)
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert list(work.read_records(tmp_path, "quick.1")) == [Run("another block", "three", "local", 0.01)]
    assert work.read_records(tmp_path, "quick") == {}


def test_a_run_that_is_broken_off_leaves_nothing(ground, tmp_path):
    assert play(Run("", "three", "local", 0.01), replace(ground, until=time.time() - 1)) is None
    work.work_through(replace(ground, until=time.time() - 1), tmp_path / "records", RECIPES[:1], 1)
    assert list((tmp_path / "records").iterdir()) == []


def test_a_run_whose_loss_is_not_finite_is_done_and_says_so(ground):
    record = play(Run("", "three", "local", 1e30), ground)
    assert "the loss became" in record["error"]


def test_more_seeds_come_at_each_methods_best_rate_once_all_rates_are_done():
    runs = first_seed(RECIPES[:1])
    bits = {run: abs(run.rate - 2e-3) for run in runs if run.label in ("local", "fedavg")}
    bits.pop(next(run for run in bits if run.label == "fedavg"))
    more = all_runs(RECIPES[:1], bits)[len(runs) :]
    assert [(run.label, run.rate, run.seed) for run in more] == [("local", 2e-3, 45), ("local", 2e-3, 47)]
    assert length(RECIPES[:1]) == len(all_runs(RECIPES[:1], dict.fromkeys(runs, 1.0))) == 33 + 4 + 12 + 2 * 14


def test_the_most_telling_runs_come_first():
    runs = first_seed(RECIPES)
    assert {run.recipe for run in runs[:18]} == set(RECIPES[:3])
    assert {run.rate for run in runs[:18]} == {RATES[0]}
    assert len(set(runs)) == len(runs) == 4 * 49


def record_of(nats, run=None, text="t"):
    """A record of two devices that are tested on the same text."""
    device = {"window_nats": nats, "window_bytes": [10] * len(nats), "test_text": "same", "bits_per_byte": sum(nats)}
    made = {"devices": {"a": device, "b": device}, "bits_per_byte": sum(nats), "last_bits_per_byte": sum(nats), "tokens": 1}
    return made | {"text": text, "device": "a board", "precision": "float32", "commit": "c", "size": "quick"}


def test_the_interval_of_a_difference_is_that_of_paired_windows():
    theirs = list(np.random.default_rng(1).uniform(20, 40, 64))
    percent, low, high = difference([record_of([1.01 * nats for nats in theirs])], [record_of(theirs)])
    assert (percent, low, high) == pytest.approx((1, 1, 1))  # every window is one percent worse, however they differ
    noise = np.random.default_rng(2).normal(0, 1, 64)
    percent, low, high = difference([record_of(list(np.array(theirs) + noise))], [record_of(theirs)])
    error = 100 * np.std(noise, ddof=1) / 8 / np.mean(theirs)  # of the mean of 64 windows
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert percent == pytest.approx(100 * np.mean(noise) / np.mean(theirs))


def test_the_table_compares_with_the_better_rival_and_refuses_another_text():
    theirs = list(np.random.default_rng(1).uniform(20, 40, 64))
    records = {
        Run("", "chat", "local", 4e-3): record_of(theirs),
        Run("", "chat", "fedavg", 4e-3): record_of([1.1 * nats for nats in theirs]),
        Run("", "chat", "comigs-edge", 4e-3): record_of([0.98 * nats for nats in theirs]),
        Run("", "chat", "comigs-edge", 8e-3): {"error": "the loss became nan"} | {key: "t" for key in ("text", "device")},
    }
    records[Run("", "chat", "comigs-edge", 8e-3)] |= {"precision": "float32", "commit": "c"}
    text = markdown(records, ("chat",))
    assert "4 of 77 runs are done" in text
    assert "against local" in text
    row = next(line for line in text.splitlines() if line.startswith("| comigs-edge "))
    assert "-2.00 % [-2.00, -2.00]" in row
    assert "0.008: diverged" in row
    records[Run("", "chat", "local", 2e-3)] = record_of(theirs, text="another")
    with pytest.raises(SystemExit, match="the records of chat are of different texts"):
        markdown(records, ("chat",))
