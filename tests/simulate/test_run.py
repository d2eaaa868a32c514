"""A simulation can be interrupted anywhere and resumes with the same bits; what it shows is counted right."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import common
from comigs_edge import __version__
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import TrainConfig
from comigs_edge.nn.weights import open_base
from comigs_edge.simulate import costs, origin, plots, report
from comigs_edge.simulate.fleet import Fleet
from comigs_edge.simulate.methods.catalogue import find_method
from comigs_edge.simulate.origin import commit, frozen_commit
from comigs_edge.simulate.plan import Plan
from comigs_edge.simulate.run import Simulation


def nothing(done, total):
    """Progress that nobody looks at."""


@pytest.fixture
def simulation(tiny_base, recipe, read_texts, tmp_path):
    text = read_texts(recipe)

    def make(folder="out", **changes):
        one = Simulation(recipe, recipe.size("quick"), text, tiny_base, tmp_path / folder, **changes)
        with one.lock():
            return one

    return make


def lines(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def without_times(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize("steps", [2, 22, 25, 40])  # in the first round, in the second, in its exchange, in the third
def test_an_interrupted_run_goes_on_with_the_same_bits(simulation, steps):
    straight = simulation("straight").run(find_method("comigs-1g1s"), 7, nothing)

    def interrupt(done, total):
        assert total == 3 * 15
        if done == steps:
            raise KeyboardInterrupt

    one = simulation()
    with pytest.raises(KeyboardInterrupt):
        one.run(find_method("comigs-1g1s"), 7, interrupt)
    started = []
    resumed = one.run(find_method("comigs-1g1s"), 7, lambda done, total: started.append(done))
    assert started[0] == steps // 15 * 15  # from its last round
    assert resumed["digest"] == straight["digest"]
    assert without_times(resumed["records"]) == without_times(straight["records"])
    assert lines(one.folder / "comigs-1g1s-7") == resumed["records"]


def test_what_a_method_keeps_between_rounds_outlives_an_interruption(simulation):
    straight = simulation("straight").run(find_method("fdlora"), 7, nothing)

    def interrupt(done, total):
        if done == 25:  # in the last round of three, long after the personal experts were kept
            raise KeyboardInterrupt

    one = simulation()
    with pytest.raises(KeyboardInterrupt):
        one.run(find_method("fdlora"), 7, interrupt)
    assert one.run(find_method("fdlora"), 7, nothing)["digest"] == straight["digest"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["comigs-edge", "fdlora"])
def test_a_fleet_on_a_gpu_is_the_fleet_on_the_processor_and_goes_on_there(simulation, tiny_path, method):
    here = simulation("here").run(find_method(method), 7, nothing)

    def interrupt(done, total):
        if done == 25:
            raise KeyboardInterrupt

    there = replace(simulation("there"), base=open_base(tiny_path, device="cuda"))
    with pytest.raises(KeyboardInterrupt):
        there.run(find_method(method), 7, interrupt)
    found = there.run(find_method(method), 7, nothing)
    for ours, theirs in zip(here["records"], found["records"], strict=True):
        for name in ("validation_loss", "bits_per_byte"):  # on a GPU the training loss is that of a step before
            if ours.get(name) is not None:
                assert theirs[name] == pytest.approx(ours[name], rel=2e-3), (name, ours["round"])


def test_a_report_says_which_hardware_its_runs_are_of(simulation):
    one, other = simulation(hardware="a board"), simulation("other", hardware="a GPU")
    results = [each.run(find_method("local"), 7, nothing) for each in (one, one, other)]
    assert report.hardware(results) == "a board; a GPU"


def test_a_finished_run_is_not_run_again_and_leaves_no_checkpoint(simulation, monkeypatch):
    one = simulation()
    first = one.run(find_method("local"), 0, nothing)
    assert sorted(path.name for path in (one.folder / "local-0").iterdir()) == ["result.json", "rounds.jsonl"]
    monkeypatch.setattr(Fleet, "round", None)
    assert one.run(find_method("local"), 0, nothing) == first


def test_another_simulation_in_the_folder_is_refused(simulation):
    simulation()
    simulation()
    with pytest.raises(ComigsError, match=r"holds another simulation \(other leaky\); name another --output"):
        simulation(leaky=True)


def test_two_processes_do_not_simulate_in_one_folder(simulation):
    one = simulation()
    with one.lock(), pytest.raises(ComigsError, match=r"another process simulates in .*; wait for it"):
        simulation()
    simulation()


def test_the_base_is_measured_once(simulation, monkeypatch):
    one = simulation()
    found = one.measure_base(nothing)
    assert list(found) == ["a", "b", "c"]
    monkeypatch.setattr("comigs_edge.simulate.run.in_torch", None)
    assert one.measure_base(nothing) == found


def record(method, seed, number, device, **figures):
    common = {"method": method, "seed": seed, "round": number, "device": device, "bytes_sent": 1, "bytes_received": 2}
    return common | {"tokens": 10, "seconds": 1.0, "validation_loss": None, "expert_scores": None} | figures


def result(seed, bits):
    return {"method": "m", "seed": seed, "records": [
        record("m", seed, 1, "a", validation_loss=4.0, expert_scores=[[0.2, 0.8], [0.5, 0.5]]),
        record("m", seed, 1, "b", validation_loss=2.0, expert_scores=[[0.4, 0.6], [0.7, 0.3]]),
        record("m", seed, 2, "a", bits_per_byte=bits, perplexity=8.0),
        record("m", seed, 2, "b", bits_per_byte=bits + 1, perplexity=10.0),
    ]}  # fmt: skip


BASE = {"a": {"bits_per_byte": 3.0, "perplexity": 20.0}, "b": {"bits_per_byte": 5.0, "perplexity": 40.0}}


def test_the_table_has_means_over_devices_and_the_spread_over_seeds_by_hand():
    base, row = report.summary([result(1, 1.0), result(2, 2.0)], BASE)
    assert (base["bits_per_byte"], base["perplexity"], base["spread"]) == (4.0, 30.0, None)
    assert row["devices"] == {"a": 1.5, "b": 2.5}
    # Means over devices: 1.5 and 2.5; their standard deviation is sqrt(0.5).
    assert row["bits_per_byte"] == 2.0
    assert row["spread"] == pytest.approx(0.5**0.5)
    assert (row["perplexity"], row["bytes"], row["tokens"], row["seconds"]) == (9.0, 12, 40, 4.0)
    text = report.markdown([base, row], ["A note."])
    assert "- A note." in text
    assert "| method | a | b | mean | spread | moved | tokens | seconds | seeds |" in text
    assert "| base | 3.0000 | 5.0000 | 4.0000 |  |  |  |  |  |" in text
    assert "| m | 1.5000 | 2.5000 | 2.0000 | 0.7071 | 0.0 MB | 40 | 4 | 2 |" in text
    assert "| base | 20.00 | 40.00 | 30.00 |" in text
    assert "| m | 8.00 | 10.00 | 9.00 |" in text


def test_the_last_round_is_reported_though_an_earlier_one_was_better():
    found = result(1, 2.0)
    found["records"] += [
        record("m", 1, 3, "a", bits_per_byte=7.0, perplexity=9.0),
        record("m", 1, 3, "b", bits_per_byte=8.0, perplexity=9.0),
    ]
    assert report.last_scores(found, "bits_per_byte") == {"a": 7.0, "b": 8.0}


def test_methods_are_compared_seed_by_seed_by_hand():
    def row(method, by_seed):
        return {"method": method, "by_seed": by_seed}

    rows = [row("base", {}), row("fedavg", {"1": 2.2, "2": 3.3, "3": 9.0}), row("comigs-1g1s", {"1": 2.0, "2": 3.0})]
    rows.append(row("local", {"1": 1.0, "2": 3.3}))
    # local: -50 % and +10 %, so -20 % with a standard deviation of sqrt(2 * 30^2) = 42.43 %
    found = report.compare(rows, "comigs-1g1s")
    assert found["fedavg"] == (pytest.approx(10.0), pytest.approx(0.0, abs=1e-9), 2)
    assert found["local"] == (pytest.approx(-20.0), pytest.approx(1800**0.5), 2)
    assert list(found) == ["fedavg", "local"]
    assert report.compare(rows, "pcl") == {}


def test_the_table_says_by_how_many_percent_a_method_lies_above_the_reference_by_hand():
    pairs = [(report.REFERENCE, 1, 1.0), (report.REFERENCE, 2, 2.0), ("m", 1, 2.0), ("m", 2, 2.0)]
    found = [result(seed, bits) | {"method": method} for method, seed, bits in pairs]
    found[3]["records"][2]["perplexity"] = 12.0
    rows = report.summary(found, BASE)
    assert rows[2]["perplexities"] == {"a": 10.0, "b": 10.0}
    # Means are 1.5 and 2.5 of the reference, 2.5 and 2.5 of the other: +66.67 % and 0, and the deviation is sqrt(2 * 33.33^2).
    text = report.markdown(rows, [])
    assert "| m | +33.33 % | 47.14 % | 2 |" in text
    assert f"| {report.REFERENCE} | +" not in text
    assert "| m | +66.67 % |  | 1 |" in report.markdown(report.summary(found[::2], BASE), [])


def test_of_runs_that_are_older_than_a_figure_it_is_said_to_be_unknown():
    (older,) = found = [result(1, 1.0)]
    assert (report.hardware(found), report.commits(found), report.windows(found)) == ("unknown hardware", "unknown", {"m": {}})
    for each in older["records"][2:]:
        each["windows"] = [1.0, 2.0]
    assert report.windows(found) == {"m": {"1": {"a": [1.0, 2.0], "b": [1.0, 2.0]}}}


def test_curves_are_means_over_devices_and_seeds():
    found = [result(1, 1.0), result(2, 2.0)]
    assert report.curves(found) == {"m": {1: 3.0}}
    assert plots.generalist_scores(found)["m"] == [pytest.approx([0.3, 0.6])]


def spending(method, losses):
    """A run whose every round costs 100 tokens, 3 bytes and 2 seconds."""
    records = [
        record(method, 1, number, "a", tokens=100, seconds=2.0, validation_loss=loss) for number, loss in enumerate(losses, 1)
    ]
    return {"method": method, "seed": 1, "records": records}


def test_costs_add_up_over_rounds_and_devices_and_are_means_over_seeds():
    first, second = costs.points([result(1, 1.0), result(2, 2.0), spending("n", [5.0, 4.0])])["n"]
    assert (first.tokens, first.bytes, first.seconds, first.loss) == (100, 3, 2.0, 5.0)
    assert (second.tokens, second.bytes, second.seconds, second.loss) == (200, 6, 4.0, 4.0)
    (only,) = costs.points([result(1, 1.0), result(2, 2.0)])["m"]
    assert (only.tokens, only.bytes, only.seconds, only.loss) == (20, 6, 2.0, 3.0)


def test_quality_under_a_budget_and_cost_of_a_quality_are_read_off_straight_lines():
    curves = costs.points([spending("slow", [5.0, 4.5, 4.0]), spending("fast", [4.0, 2.0, 3.0])])
    assert costs.target(curves) == 4.0
    assert costs.loss_at(curves["slow"], 250) == 4.25
    assert costs.loss_at(curves["slow"], 100) == 5.0
    assert costs.loss_at(curves["slow"], 99) is None
    spent = costs.cost_of(curves["slow"], 4.125)
    assert (spent.tokens, spent.bytes, spent.seconds) == (275, 8.25, 5.5)
    assert costs.cost_of(curves["fast"], 4.0).tokens == 100
    assert costs.cost_of(curves["fast"], 1.0) is None
    text = costs.markdown([spending("slow", [5.0, 4.5, 4.0]), spending("fast", [4.0, 2.0, 3.0])])
    assert "| method | 150 | 225 | 300 | tokens to 4.000 | moved | seconds |" in text
    assert "| slow | 4.750 | 4.375 | 4.000 | 300 | 0.0 MB | 6 |" in text
    assert "| fast | 3.000 | 2.250 | 3.000 | 100 | 0.0 MB | 2 |" in text


def test_of_a_single_round_its_end_is_all_that_is_known():
    curve = costs.points([spending("m", [5.0])])["m"]
    assert [costs.loss_at(curve, tokens) for tokens in (99, 100, 101)] == [None, 5.0, None]
    assert "| m |  |  | 5.000 | 100 | 0.0 MB | 2 |" in costs.markdown([spending("m", [5.0])])


def test_without_a_validation_loss_there_are_no_costs():
    assert costs.markdown([spending("m", [None, None])]) == ""


def test_plots_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    paths = plots.draw([result(1, 1.0)], tmp_path)
    assert [path.name for path in paths] == ["validation.png", "experts.png"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_the_command_runs_reports_and_goes_on(run, recipe_file, folder, tiny_path, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "is_possible", lambda: False)
    words = ["simulate", recipe_file(), "--text", folder, "--base", tiny_path, "--output", tmp_path / "out", "--threads", 1]
    words += ["--method", "local", "--method", "comigs-2s", "--seed", 1, "--rounds", 1]
    first = run(*words)
    assert "matplotlib is missing; get it with: pip install 'comigs-edge[bench]'" in first.stderr.replace("\n", " ")
    report_text = (tmp_path / "out" / "report.md").read_text()
    assert "| comigs-2s |" in report_text
    assert "Rounds of 3 expert steps: 1; 2 x 32 tokens a step." in report_text
    assert "Training tokens: a 2,000, b 2,000, c 1,000." in report_text
    again = json.loads(run(*words, "--json").stdout)
    assert [row["method"] for row in again["methods"]] == ["base", "local", "comigs-2s"]
    assert {"notes", "above_reference", "validation_losses", "generalist_scores"} <= set(again)
    assert again["methods"][1]["bits_per_byte"] < again["methods"][0]["bits_per_byte"]
    other = run(*words, "--rounds", 2, code=1)
    assert "holds another simulation (other size); name another --output" in other.stderr


def test_what_is_judged_says_so_with_its_text_commit_and_settings(run, recipe_file, folder, tiny_path, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "is_possible", lambda: False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "judging")
    words = ["simulate", recipe_file('about = "Three', 'judging = true\nabout = "Three'), "--text", tmp_path, "--base", tiny_path]
    words += ["--threads", 1, "--method", "comigs-edge", "--rounds", 1, "--devices", 2, "--json"]
    refused = run(*words, code=1)
    assert 'the text of "Three devices" is kept for judging' in refused.stderr.replace("\n", " ")
    monkeypatch.setattr(origin, "commit", lambda: "33d29f372c28-dirty")
    refused = run(*words, "--judge", code=1)
    assert "files differ from 33d29f372c28; commit all changes first" in refused.stderr.replace("\n", " ")
    monkeypatch.setattr(origin, "commit", lambda: "33d29f372c28")
    found = json.loads(run(*words, "--judge").stdout)
    assert found["folder"] == "simulations/three-quick-2-judged"
    assert (found["judged"], found["version"]) == ([True], [__version__])
    assert found["commit"] == ["33d29f372c28"]
    assert any("what judges methods is `make evidence JUDGE=1`" in note for note in found["notes"])
    assert [len(text) for text in found["text"]] == [64]
    assert f"Judging text, digest {found['text'][0][:16]}; commit of the code: 33d29f372c28." in found["notes"]
    assert any("three.toml is no recipe of the program: nothing shows" in note for note in found["notes"])
    schedule = found["settings"]["comigs-edge"]["schedule"]
    assert (schedule["steps"], schedule["router_offset_rate"]) == (3, TrainConfig.router_offset_rate)
    assert found["documents"].keys() == {"a", "b"}
    for name, nats in found["windows"]["comigs-edge"]["42"].items():
        assert len(nats) == len(found["documents"][name])
    earlier = json.loads((tmp_path / "simulations" / "three-quick-2-judged" / "simulation.json").read_text())
    assert earlier["judged"]
    assert not {"like", "judging"} & earlier["recipe"].keys()


def test_a_checkout_has_a_commit(tmp_path, monkeypatch):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=origin.CHECKOUT, capture_output=True, text=True).stdout
    assert not head or head.startswith(commit().partition("-dirty")[0])
    monkeypatch.setattr(origin, "CHECKOUT", tmp_path)
    assert commit() == ""
    assert frozen_commit() == ""  # an installed package has its version


def test_what_judges_is_of_one_commit_and_of_gits_own_where_there_is_git(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.check_output(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, text=True)

    monkeypatch.setattr(origin, "CHECKOUT", tmp_path)
    assert common.frozen_commit("named") == "named"
    with pytest.raises(SystemExit, match="there is no git to say which; name it with COMMIT="):
        common.frozen_commit()
    (tmp_path / "code.py").write_text("a = 1")
    for words in (["init", "-q"], ["add", "code.py"], ["commit", "-qm", "a"]):
        git(*words)
    head = git("rev-parse", "HEAD")[:12]
    assert frozen_commit() == common.frozen_commit("named") == head
    (tmp_path / "code.py").write_text("a = 2")
    with pytest.raises(SystemExit, match=f"files differ from {head}; commit all changes first"):
        common.frozen_commit("named")
    changed = commit()
    (tmp_path / "code.py").write_text("a = 3")
    assert len({head, changed, commit()}) == 3  # what was begun by the one is not gone on with by the other
    git("checkout", "-q", "code.py")
    (tmp_path / "notes.md").write_text("no code")
    (tmp_path / "diary.txt").write_text("text to simulate with")
    assert commit() == head
    (tmp_path / "recipe.toml").write_text("[training]")
    assert commit().startswith(f"{head}-dirty-")  # git does not know it, the program reads it all the same


@pytest.mark.parametrize("what", ["commit", "settings"])
def test_what_other_code_or_settings_began_is_not_gone_on_with(simulation, monkeypatch, what):
    def interrupt(done, total):
        if done > 12:  # in the second round
            raise KeyboardInterrupt

    one, method = simulation(), find_method("local")
    with pytest.raises(KeyboardInterrupt):
        one.run(method, 7, interrupt)
    with monkeypatch.context() as changed:
        if what == "commit":
            changed.setattr(origin, "commit", lambda: "33d29f372c28")
        else:
            changed.setattr(Plan, "record", lambda *_: {"schedule": {"steps": 1}})
        with pytest.raises(ComigsError, match=rf"local-7 is of other code \(other {what}\); finish it with that"):
            one.run(method, 7, lambda *_: None)
    assert one.run(method, 7, lambda *_: None)["digest"]


def test_a_command_that_is_stopped_says_how_it_goes_on(run, recipe_file, folder, tiny_path, tmp_path, monkeypatch):
    def stopped(self, method, seed, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(Simulation, "run", stopped)
    words = ["simulate", recipe_file(), "--text", folder, "--base", tiny_path, "--output", tmp_path / "out"]
    assert "the same command continues after the last round" in run(*words, code=130).stderr


def test_help_does_not_load_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from comigs_edge.cli import app;"
        "print(CliRunner().invoke(app, ['simulate', '--help']).exit_code, {'torch', 'matplotlib'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "0 set()"


def test_wrong_words_are_refused_in_a_sentence(run, recipe_file, folder, tiny_path):
    words = ["simulate", recipe_file(), "--text", folder, "--base", tiny_path]
    assert "there is no method 'x'" in run(*words, "--method", "x", code=1).stderr
    assert "--device tpu must be one of cpu, cuda" in run(*words, "--device", "tpu", code=2).stderr
    assert "there is no recipe nonsense" in run("simulate", "nonsense", "--text", folder, code=1).stderr
    assert "has no file de.jsonl" in run("simulate", "multilingual", "--text", folder, "--base", tiny_path, code=1).stderr
