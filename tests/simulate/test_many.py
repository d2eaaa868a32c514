"""What joining brings: points in the order of their cost, gains against learning alone, a table and a plot."""

import json
from dataclasses import replace

import pytest

from benchmarks.evidence.play import Ground, play
from benchmarks.evidence.runs import Run
from benchmarks.figures import many
from comigs_edge.simulate import plots
from comigs_edge.simulate import recipe as recipes
from comigs_edge.simulate.recipe import find, read


def record_of(run, *nats):
    """A device for each number, of four documents with a window each."""
    devices = {
        f"person{number:02}": {
            "window_nats": [each] * 4, "window_bytes": [10] * 4, "window_documents": [0, 1, 2, 3], "test_text": str(number),
            "bits_per_byte": each, "perplexity": 2 * each,
        }
        for number, each in enumerate(nats)
    }  # fmt: skip
    return {
        "run": {"rate": run.rate}, "devices": devices, "bits_per_byte": sum(nats) / len(nats), "text": "t", "device": "a board",
        "precision": "float32", "commit": "c", "seconds": 1.0,
    }  # fmt: skip


def run_of(method, rate=4e-3, devices=3):
    return Run("many", "many", method, rate, devices=devices)


def test_points_that_cost_least_come_first():
    assert many.points([2048, 4096], [2, 4]) == [(2048, 2), (2048, 4), (4096, 2), (4096, 4)]


def test_every_point_of_the_benchmark_is_one_of_its_recipe():
    recipe = read(find("many"))
    assert list(recipe.sizes) == many.TOKENS.split(",")
    assert max(map(int, many.DEVICES.split(","))) == len(recipe.devices)


def test_the_gain_is_against_the_better_rate_of_learning_alone_and_of_the_first_people_too():
    runs = {
        run_of("local"): (4.0, 4.0, 4.0), run_of("local", 2e-3): (2.0, 2.0, 2.0), run_of("fedavg"): (2.0, 1.8, 1.6),
        run_of("comigs-edge"): (1.0, 2.0, 1.5), run_of("comigs-edge", devices=2): (1.0, 1.0),
    }  # fmt: skip
    records = {run: record_of(run, *nats) for run, nats in runs.items()}
    row = many.measure(records, 2048, 3)
    assert row["rates"] == {"local": 2e-3, "fedavg": 4e-3, "comigs-edge": 4e-3}
    assert row["gain_percent"]["fedavg"] == pytest.approx({"mean": 10, "low": 10, "high": 10})
    assert row["gain_percent"]["comigs-edge"]["mean"] == pytest.approx(25)
    assert row["gain_percent_of_the_first_2"] == pytest.approx({"fedavg": 5, "comigs-edge": 25})
    assert many.measure(records, 2048, 2) is None  # nobody has learned alone there
    table = many.markdown([row]).splitlines()
    assert table[-1].startswith("| 2,048 | 3 | 2.0000 (4.00) | 1.8000 (3.60) | 1.5000 (3.00) | +10.00 % [+10.00, +10.00] |")
    assert table[-1].endswith("| +5.00 %, +25.00 % |")


def test_runs_of_the_first_devices_make_a_row_and_a_plot(recipe_file, folder, tiny_path, monkeypatch, tmp_path):
    path = recipe_file()
    monkeypatch.setattr(recipes, "find", lambda name: path)
    ground = Ground(text=folder, base=tiny_path, size="quick", rounds=1, test_tokens=1000)
    records = {run: play(run, ground) for run in (replace(run_of(method), devices=2) for method in many.METHODS)}
    assert {tuple(record["devices"]) for record in records.values()} == {("a", "b")}
    assert {run.name("quick.1").split("-")[0] for run in records} == {"many.2"}
    row = many.measure(records, 2048, 2)
    assert json.loads(json.dumps(row)) == row
    if plots.is_possible():
        many.draw([row], tmp_path / "many.png")
        assert (tmp_path / "many.png").stat().st_size > 1000
