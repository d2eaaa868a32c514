"""The list of runs: equal terms for all, nothing computed twice, nothing half; and the figures of its table."""

import json
import time
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence import work
from benchmarks.evidence.play import Ground, equal_terms, play, settings_of, text_digest
from benchmarks.evidence.runs import RATES, RECIPES, Run, all_runs, first_seed, judged_runs, length, with_judged
from benchmarks.evidence.table import difference, markdown
from comigs_edge.home.config import TrainConfig
from comigs_edge.nn.experts import FORMS
from comigs_edge.simulate import origin
from comigs_edge.simulate import recipe as recipes
from comigs_edge.simulate.fleet import Fleet

OTHER_TEXT = r"of another text than .* has in windows of [\d,]+ test tokens a device; name other --records"


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
        assert len(device["window_nats"]) == len(device["window_documents"]) > len(set(device["window_documents"])) > 1


@pytest.mark.parametrize("method", ["comigs-edge", "fedavg"])
def test_by_muon_long_trainings_learn_more_slowly_as_an_installation_does(ground, method):
    def rate(rounds, form):
        found = settings_of(Run("", "three", method, 0.01, form), replace(ground, rounds=rounds))
        return found["schedule"]["expert_learning_rate"]

    assert rate(16, "parallel") == rate(16, "lora") == rate(64, "lora") == 0.01  # 48 steps, and 192
    assert rate(64, "parallel") == pytest.approx(0.01 * (50 / 192) ** 0.5)


def test_what_is_done_is_not_computed_again_and_the_next_in_the_list_is(ground, tmp_path):
    done = {run: {"size": "quick.1"} for run in first_seed(RECIPES[:1])}
    assert [run for run in all_runs(RECIPES[:1], {}) if run not in done] == []
    record = play(Run("", "three", "local", 0.01), ground)
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert list(work.read_records(tmp_path, "quick.1")) == [Run("another block", "three", "local", 0.01)]
    assert work.read_records(tmp_path, "quick") == {}


def test_a_run_that_is_broken_off_leaves_nothing(ground, tmp_path):
    assert play(Run("", "three", "local", 0.01), replace(ground, until=time.time() - 1)) is None
    work.work_through(replace(ground, until=time.time() - 1), tmp_path / "records", partial(all_runs, RECIPES[:1]), 1)
    assert list((tmp_path / "records").iterdir()) == []


def test_the_last_state_is_left_out_where_only_the_chosen_one_is_wanted(ground):
    run = Run("", "three", "comigs-edge", 5.0)  # at such a rate what is learned is worse than nothing
    whole, chosen = play(run, ground), play(run, replace(ground, chosen_only=True))
    assert chosen["bits_per_byte"] == whole["bits_per_byte"] < whole["last_bits_per_byte"]
    assert chosen["last_bits_per_byte"] is None
    for device, other in zip(whole["devices"].values(), chosen["devices"].values(), strict=True):
        assert device["bits_per_byte_before_exchange"] == other["bits_per_byte_before_exchange"] > 0


def test_a_run_whose_loss_is_not_finite_is_done_and_says_so(ground):
    record = play(Run("", "three", "local", 1e30), ground)
    assert "the loss became" in record["error"]


def test_more_seeds_come_at_each_methods_best_rate_once_all_rates_are_done():
    runs = first_seed(RECIPES[:1])
    bits = {run: abs(run.rate - 2e-3) for run in runs if run.label in ("local", "fedavg")}
    bits.pop(next(run for run in bits if run.label == "fedavg"))
    more = all_runs(RECIPES[:1], bits)[len(runs) :]
    assert [(run.label, run.rate, run.seed) for run in more] == [("local", 2e-3, 45), ("local", 2e-3, 47)]
    assert length(RECIPES[:1]) == len(all_runs(RECIPES[:1], dict.fromkeys(runs, 1.0))) == 48 + 10 + 36 + 2 * 26


def test_the_most_telling_runs_come_first():
    runs = first_seed(RECIPES)
    assert {run.method for run in runs[:9]} == {"comigs-edge", "local", "fedavg"}
    assert {(run.form, run.rate) for run in runs[:18]} == {("parallel", FORMS["parallel"].learning_rate)}
    assert {(run.form, run.rate) for run in runs[18:36]} == {("lora", RATES[0])}
    assert {run.recipe for run in runs[:9]} == {run.recipe for run in runs[18:27]} == set(RECIPES[:3])
    assert len(set(runs)) == len(runs) == 4 * 94


def test_both_forms_have_rivals_of_equal_bytes_and_of_equal_text(ground):
    runs = {run.label: run for run in first_seed(RECIPES[:1])}
    for end in ("", "-parallel"):
        assert {f"local-train-valid{end}", f"fedavg-train-valid{end}"} <= runs.keys()
        names = ("comigs-edge", "fedavg-r8", "fedavg")
        product, equal, double = (
            play(Run("", "three", name, 0.01, runs[f"fedavg{end}"].form), ground)["bytes_moved"] for name in names
        )
        assert [equal / product, double / product] == pytest.approx([1, 2], rel=0.1)


def test_each_method_is_judged_at_the_rate_that_was_best_on_tuning_text_and_at_no_other():
    runs = first_seed(RECIPES[:1])
    bits = {run: abs(run.rate - 2e-3) for run in runs if run.label in ("local", "fedavg")}
    bits.pop(next(run for run in bits if run.label == "fedavg"))  # not all of its rates are done
    judged = judged_runs(RECIPES[:1], bits)
    assert {(run.label, run.rate, run.judged) for run in judged} == {("local", 2e-3, True)}
    assert [run.recipe for run in judged[:2]] == list(with_judged(RECIPES[:1])) == ["multilingual", "multilingual-judged"]
    assert [run.seed for run in judged] == [42, 42, 45, 45, 47, 47]
    assert judged_runs(RECIPES[:1], bits | dict.fromkeys(judged, 0.0)) == judged
    everything = judged_runs(RECIPES[:1], dict.fromkeys(runs, 1.0))
    assert length(RECIPES[:1], judged=True) == len(everything) == len(set(everything))


def test_what_is_judged_is_of_other_text_and_says_so(ground, tmp_path):
    tuned, judged = (play(Run("", "three", "local", 0.01, judged=judged), ground) for judged in (False, True))
    assert (tuned["run"]["judged"], judged["run"]["judged"]) == (False, True)
    assert tuned["text"] != judged["text"]
    assert {device["test_text"] for device in tuned["devices"].values()}.isdisjoint(
        device["test_text"] for device in judged["devices"].values()
    )
    records = {Run(**record["run"]): record for record in (tuned, judged)}
    for is_judged, words in ((False, "no judgement. 1 of"), (True, "nothing was chosen on it")):
        text = markdown(records, ("three",), judged=is_judged)
        assert words in text
        assert text.count("**three**") == 1


@pytest.fixture
def judge(ground, tmp_path, monkeypatch):
    """Begins to judge with the records of a folder, in no time, of code at a commit."""

    def run(*words, commit="33d29f372c28"):
        monkeypatch.setattr(origin, "commit", lambda: commit)
        fixed = ["--judge", "--recipes", "multilingual", "--rounds", "1", "--test-tokens", "1000", "--minutes", "0"]
        fixed += ["--base", str(ground.base), "--records", str(tmp_path / "records")]
        monkeypatch.setattr("sys.argv", ["evidence", str(ground.text), *fixed, *words])
        evidence.main()

    return run


@pytest.fixture
def write_record(tmp_path, ground):
    """Writes a record of made-up scores."""
    (tmp_path / "records").mkdir()

    def write(run, text, bits=1.0):
        record = record_of([bits, bits], text=text) | {
            "run": asdict(run),
            "size": "quick.1",
            "settings": settings_of(run, ground),
        }
        (tmp_path / "records" / f"{run.name('quick.1')}.json").write_text(json.dumps(record))

    return write


@pytest.mark.parametrize("words", [(), ("--commit", "33d29f372c28")])
def test_nothing_is_judged_while_code_is_not_committed(words, judge):
    with pytest.raises(SystemExit, match=r"files differ from 33d29f372c28; commit all changes first"):
        judge(*words, commit="33d29f372c28-dirty")


def test_nothing_is_judged_before_a_rate_was_chosen(judge):
    with pytest.raises(SystemExit, match="no method has all its rates done on tuning text; run it without --judge first"):
        judge()


def test_rates_of_another_text_or_of_other_settings_judge_nothing(judge, write_record, ground, capsys, tmp_path):
    runs = [run for run in first_seed(RECIPES[:1]) if run.label == "local"]
    for run in runs:
        write_record(run, text_digest(run, ground))
    judge()
    assert f"{len(RATES)} of {length(RECIPES[:1])} runs are done" in capsys.readouterr().out
    path = tmp_path / "records" / f"{runs[0].name('quick.1')}.json"
    record = json.loads(path.read_text())
    record["settings"]["schedule"]["router_period"] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=r"multilingual-quick.1-local-0.004-42 was made with other settings than this code has"):
        judge()
    write_record(runs[-1], "another")
    with pytest.raises(SystemExit, match=f"records of multilingual are {OTHER_TEXT}"):
        judge()


def test_a_method_is_judged_at_one_rate(judge, write_record, ground, capsys):
    runs = [run for run in first_seed(RECIPES[:1]) if run.label == "local"]
    for run in runs:
        write_record(run, text_digest(run, ground), bits=run.rate)
    best, *_, other = sorted((replace(run, judged=True) for run in runs), key=lambda run: run.rate)
    write_record(best, text_digest(best, ground))
    judge()
    assert "nothing was chosen on it" in capsys.readouterr().out
    write_record(other, text_digest(best, ground), bits=0.5)
    with pytest.raises(SystemExit, match=r"^multilingual is judged with local at 0.00\d and at 0.00\d, and no rate is chosen"):
        judge()
    assert capsys.readouterr().out == ""  # and nothing was begun
    with pytest.raises(SystemExit, match=r"at 0\.001 and at 0\.008"):
        markdown({best: record_of([1.0]), other: record_of([0.5])}, RECIPES[:1], judged=True)


def test_records_of_another_text_are_not_gone_on_with(ground, tmp_path):
    run = Run("", "three", "local", 0.01)
    record = play(run, ground)
    (tmp_path / "a.json").write_text(json.dumps(record))
    work.work_through(ground, tmp_path, lambda bits: [run], 1)
    assert len(list(tmp_path.glob("*.json"))) == 1
    (tmp_path / "a.json").write_text(json.dumps(record | {"text": "another"}))
    with pytest.raises(SystemExit, match=f"records of three are {OTHER_TEXT}"):
        work.work_through(ground, tmp_path, lambda bits: [run], 1)


def test_a_run_that_was_cut_off_goes_on_with_the_same_figures(ground, tmp_path, monkeypatch):
    run, ground = Run("", "three", "fedavg", 0.01), replace(ground, rounds=3)
    straight, calls = play(run, ground), []
    there, done = replace(ground, unfinished=tmp_path / "unfinished"), Fleet.round

    def killed(fleet, advance):
        calls.append(fleet.number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done(fleet, advance)

    monkeypatch.setattr(Fleet, "round", killed)
    with pytest.raises(KeyboardInterrupt):
        play(run, there)
    found = play(run, there)
    assert calls == [0, 1, 1, 2]
    assert found["devices"] == straight["devices"]
    assert list((tmp_path / "unfinished").iterdir()) == []
    monkeypatch.setattr(Fleet, "round", done)
    assert play(run, replace(there, rounds=1))["devices"]  # with nothing to keep on the way


def test_a_zero_expert_is_closed_with_ordinary_text_as_in_an_installation(ground, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.evidence.play.WORK", tmp_path)
    run = Run("", "three", "comigs-edge", 0.01, "parallel", zero_expert=True)
    ground = replace(ground, ordinary_tokens=300, rounds=2)
    plain, closed = play(replace(run, zero_expert=False), ground), play(run, ground)
    assert (plain["label"], closed["label"]) == ("comigs-edge-parallel", "comigs-edge-parallel-zero")
    assert closed["settings"]["zero_expert"] > plain["settings"]["zero_expert"]
    assert closed["settings"]["schedule"]["closing_steps"] == TrainConfig.closing_steps > 0
    assert closed["tokens"] > plain["tokens"]
    assert len(list(tmp_path.glob("ordinary-learning-*.json"))) == 1
    for name, device in closed["devices"].items():
        assert device["bits_per_byte_without_zero_expert"] == plain["devices"][name]["bits_per_byte"] != device["bits_per_byte"]


def record_of(nats, documents=None, text="t", before=None, commit="c"):
    """A record of two devices that are tested on the same text; by default every window is a document."""
    device = {"window_nats": nats, "window_bytes": [10] * len(nats), "test_text": "same", "bits_per_byte": sum(nats)}
    device |= {"window_documents": documents or list(range(len(nats))), "perplexity": 7.0}
    device["bits_per_byte_before_exchange"] = before
    made = {"devices": {"a": device, "b": device}, "bits_per_byte": sum(nats), "last_bits_per_byte": sum(nats), "tokens": 1}
    return made | {"text": text, "device": "a board", "precision": "float32", "commit": commit, "size": "quick"}


def test_the_interval_of_a_difference_is_that_of_paired_documents():
    theirs = list(np.random.default_rng(1).uniform(20, 40, 64))
    percent, low, high = difference([record_of([1.01 * nats for nats in theirs])], [record_of(theirs)])
    assert (percent, low, high) == pytest.approx((1, 1, 1))  # every window is one percent worse, however they differ
    noise = np.random.default_rng(2).normal(0, 1, 64)
    percent, low, high = difference([record_of(list(np.array(theirs) + noise))], [record_of(theirs)])
    error = 100 * np.std(noise, ddof=1) / 8 / np.mean(theirs)  # of the mean of 64 windows
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert percent == pytest.approx(100 * np.mean(noise) / np.mean(theirs))
    # Four windows of a document that have the same noise say no more than one: 16 documents, twice the interval.
    theirs, shared, documents = [30.0] * 64, np.repeat(noise[:16], 4), list(np.repeat(range(16), 4))
    _, low, high = difference([record_of(list(theirs + shared), documents)], [record_of(theirs, documents)])
    assert high - low == pytest.approx(2 * 1.96 * 100 * np.std(noise[:16]) / 4 / 30, rel=0.15)


def test_the_table_says_which_rows_other_code_made_and_where_documents_are_few():
    few, many = [30.0] * 9, [30.0] * 10
    for nats, mark in ((few, "*"), (many, "")):
        records = {
            Run("", "chat", "local", 4e-3): record_of(nats),
            Run("", "chat", "fedavg", 4e-3): record_of(nats, before=29.0, commit="d"),
            Run("", "chat", "comigs-edge", 4e-3): record_of(nats, before=28.0, commit="d"),
        }
        text = markdown(records, ("chat",))
        assert "Made on (a) a board in float32, commit c; (b) a board in float32, commit d. What differs" in text
        total = f"{sum(nats):.4f}"
        row = (
            f"| comigs-edge | 0.004: {total} | {total} (7.00) | {total} | 28.0000 | +0.00 % [+0.00, +0.00]{mark} |  | 1 | 1 | b |"
        )
        assert row in text.splitlines()
        assert any(line.startswith("| local |") and line.endswith("| a |") for line in text.splitlines())
    runs = {Run("", "chat", "local", 4e-3 + number): record_of(many, commit=f"{number:02}") for number in range(54)}
    assert "; (0) a board in float32, commit 52; (1) a board in float32, commit 53." in markdown(runs, ("chat",))


def test_an_interval_has_the_spread_over_seeds_in_it():
    theirs = [30.0] * 64
    ours = [record_of([(1 + change) * nats for nats in theirs]) for change in (0.01, 0.02, 0.03)]
    percent, low, high = difference(ours, [record_of(theirs)] * 3)
    assert percent == pytest.approx(2)
    # The least and the largest of the 27 draws of three seeds come once each: 1 of 27 is more than 2.5 %.
    assert (low, high) == pytest.approx((1, 3))


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
    assert "4 of 146 runs are done" in text
    assert "no judgement" in text
    assert "test documents (windows) of the devices: 64 (64), 64 (64); text t" in text
    assert "against local" in text
    row = next(line for line in text.splitlines() if line.startswith("| comigs-edge "))
    assert "-2.00 % [-2.00, -2.00]" in row
    assert "(7.00)" in row
    assert "0.008: diverged" in row
    assert "at equal text, against the better rival" in text  # neither of the rivals is there
    for name, form, factor in (("local", "lora", 0.99), ("fedavg", "lora", 1.2), ("fedavg", "parallel", 0.5)):
        records[Run("", "chat", f"{name}-train-valid", 4e-3, form)] = record_of([factor * nats for nats in theirs])
    text = markdown(records, ("chat",))
    assert "| against local | at equal text, against fedavg-train-valid-parallel |" in text
    row = next(line for line in text.splitlines() if line.startswith("| comigs-edge "))
    assert "| -2.00 % [-2.00, -2.00] | +96.00 % [+96.00, +96.00] |" in row
    assert " runs are done. Made on (a) a board in float32, commit c; (b) t in float32, commit c. What differs" in text
    records[Run("", "chat", "local", 2e-3)] = record_of(theirs, text="another")
    with pytest.raises(SystemExit, match="the records of chat are of different texts"):
        markdown(records, ("chat",))
