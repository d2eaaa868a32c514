"""What `make bench` runs exists, and what is tried does not touch the shipped figures."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.__main__ import BENCHMARKS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_modules_and_scripts_that_exist(name, monkeypatch):
    monkeypatch.setenv("TEXT", "text")
    monkeypatch.setenv("BEFORE", "before")
    for words in BENCHMARKS[name].commands():
        if words[0] == "-m":
            assert importlib.util.find_spec(words[1])
        else:
            assert (ROOT / words[0]).is_file()


def test_an_unknown_benchmark_prints_the_list():
    for words, code in (([], 0), (["nonsense"], 1)):
        done = subprocess.run([sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code
        assert all(f"make bench WHAT={name} " in done.stdout for name in BENCHMARKS)


def test_figures_are_shipped_only_where_that_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "WORK", tmp_path)
    monkeypatch.delenv("RECORD", raising=False)
    assert common.result_file("steps.json") == tmp_path / "results" / "steps.json"
    monkeypatch.setenv("RECORD", "1")
    assert common.result_file("steps.json") == ROOT / "benchmarks" / "results" / "steps.json"


def test_every_result_file_has_a_line_in_the_table():
    folder = ROOT / "benchmarks" / "results"
    table = (folder / "README.md").read_text()
    for path in folder.glob("*.json"):
        assert f"`{path.name.removeprefix('simulate-')}`" in table, path.name
