"""What `make bench` runs exists, and what is tried does not touch the shipped figures."""

import importlib.util
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.__main__ import BENCHMARKS
from benchmarks.evidence.runs import RECIPES, first_seed, length
from benchmarks.evidence.table import difference, markdown
from benchmarks.evidence.work import read_records
from benchmarks.figures import closing_rows, evenings, further, many, quality, silence
from benchmarks.mutants.listed import Mutant, read_mutants
from benchmarks.trials.report import report
from comigs_edge.data.arrangement import SPLITS
from comigs_edge.home.folder import corpus
from comigs_edge.simulate import origin
from comigs_edge.training.pace import of_steps, seconds_left
from comigs_edge.training.schedule import Schedule
from tests.tiny import some_text

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_modules_and_scripts_that_exist(name, monkeypatch):
    monkeypatch.setenv("TEXT", "text")
    monkeypatch.setenv("HOMES", "home")
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


def test_benchmarks_that_documents_name_are_in_the_list():
    for path in (ROOT / "Makefile", *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")):
        named = set(re.findall(r"WHAT=([a-z-]+)", path.read_text()))
        assert named <= BENCHMARKS.keys(), path.name


def section(title):
    """The rows of the first table below this title of docs/results.md, cell by cell, without the header."""
    text = (ROOT / "docs" / "results.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return text, rows[2:]


def test_the_comparison_at_equal_terms_has_the_figures_of_its_records():
    records = read_records(ROOT / "benchmarks" / "results" / "evidence" / "earlier", "quick")
    made = markdown(records, RECIPES)
    text, rows = section("At equal terms, begun")
    tables = re.split(r"\n\*\*[a-z-]+\*\*", made)[1:]
    assert f"list of {length(RECIPES)} runs" in text
    assert f"{len(records)} are done" in text
    assert all(f"{record['device']} in {record['precision']}" in text for record in records.values())
    before = rows.index(list(RECIPES[:3]))
    for _, *cells in rows[:before]:
        for cell, table in zip(cells, tables, strict=True):
            assert f" {cell} " in table
    labels = ("fedavg", "fedavg-train-valid", "comigs-edge", "comigs-edge-parallel")
    for label, (_, *cells) in zip(labels, rows[before + 2 :], strict=True):
        for cell, table in zip(cells, tables, strict=True):
            (row,) = [line.split(" | ") for line in table.splitlines() if line.startswith(f"| {label} |")]
            assert row[4] == cell
    for table in tables:
        at_equal_text = {
            row.split(" | ")[0]: row.split(" | ")[6] for row in table.splitlines() if row.startswith("| comigs-edge")
        }
        assert len(at_equal_text) == 2
        assert all(each in " ".join(text.split()) for each in at_equal_text.values())


def test_the_default_form_at_equal_terms_has_the_figures_of_its_records():
    folder = ROOT / "benchmarks" / "results" / "evidence"
    done = read_records(folder, "brief")
    records = {
        (run.recipe, run.method, run.rate): each for run, each in (read_records(folder / "earlier", "brief") | done).items()
    }
    text, _ = section("The default form at equal terms, begun")
    columns = [(recipe, rate) for recipe in ("multilingual", "topics-ood", "domains") for rate in (6e-3, 1.2e-2)]
    first = [run for run in first_seed(RECIPES[:3]) if run.form == "parallel"]
    said = f"Of the {len(first)} runs of three recipes with this seed {len(done)} are done"
    assert set(done) <= set(first)
    assert said in " ".join(text.split())
    assert f"of {len({record['commit'] for record in done.values()})} commits" in " ".join(text.split())
    shown = 0
    for label, *cells in (line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")):
        method = label.split("`")[1] + ("-train-valid" if "validation text" in label else "")
        key = "bits_per_byte_without_zero_expert" if "without" in label else "bits_per_byte"
        for (recipe, rate), cell in zip(columns, cells, strict=True):
            record = records.get((recipe, method, rate))
            bits = record and statistics.mean(device[key] for device in record["devices"].values())
            assert cell.strip() == (f"{bits:.4f}" if bits else "")
            shown += bool(bits) and "without" not in label
    assert shown == len(records)
    for recipe, rival in (
        ("multilingual", "fedavg"), ("multilingual", "local"), ("multilingual", "local-train-valid"), ("topics-ood", "fedavg"),
        ("topics-ood", "fedavg-train-valid"), ("domains", "fedavg"), ("domains", "local"),
    ):  # fmt: skip
        best = {
            method: min(
                (each for key, each in records.items() if key[:2] == (recipe, method)), key=lambda each: each["bits_per_byte"]
            )
            for method in ("comigs-edge", rival)
        }
        percent, low, high = difference([best["comigs-edge"]], [best[rival]])
        assert f"{percent:+.2f} % [{low:+.2f}, {high:+.2f}]" in " ".join(text.split())


def test_the_table_of_more_devices_has_the_figures_of_its_records():
    folder = ROOT / "benchmarks" / "results"
    points = json.loads((folder / "many.json").read_text())
    records = read_records(folder / "many", "2048")
    assert points == [json.loads(json.dumps(many.measure(records, point["tokens"], point["devices"]))) for point in points]
    text, _ = section("More devices, begun")
    shown = [line for line in text.splitlines() if line.startswith("|")]
    assert shown == [line for line in many.markdown(points).splitlines() if line.startswith("|")]


@pytest.mark.parametrize(("title", "ground"), [("The zero expert", silence.TUNING), ("The zero expert, judged", silence.JUDGING)])
def test_what_a_zero_expert_keeps_has_the_figures_of_its_record(title, ground):
    record = json.loads((ROOT / "benchmarks" / "results" / ground.record).read_text())
    made = [line.split(" | ")[2:] for line in silence.markdown(record["texts"], ground.elsewhere).splitlines()[2:]]
    _, rows = section(title)
    numbers = r"[-+]?\d+\.?\d*"
    for found, (_, _, *cells) in zip(made, rows, strict=True):
        assert re.findall(numbers, " ".join(cells)) == re.findall(numbers, " ".join(found))


def test_the_table_of_closing_phases_of_small_batches_has_the_figures_of_its_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "closing-rows.json").read_text())
    text, _ = section("The zero expert behind small batches")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| text")]
    assert rows == closing_rows.markdown(record["devices"])


def test_the_trials_of_the_zero_expert_have_the_figures_of_their_records(capsys):
    report(ROOT / "benchmarks" / "results" / "trials")
    zero = capsys.readouterr().out.split("\n\n")[0]
    made = {line.rsplit(maxsplit=8)[0].strip(): line.split()[-7:-2] for line in zero.splitlines()[1:]}
    _, rows = section("The zero expert, tried")
    for _, kept, *harm, kl in rows:
        figures = [f"{float(kept.split()[0]):.1f}%", *(cell.replace(" ", "") for cell in harm), kl]
        assert figures in made.values()
    for label, (_, *harm, _) in made.items():
        assert all(each.startswith("-") for each in harm) != label.startswith("without")


def test_the_tables_of_training_further_have_the_figures_of_their_record():
    results = ROOT / "benchmarks" / "results"
    new, old = (json.loads((results / name).read_text())["runs"] for name in ("further.json", "further-adamw.json"))
    text, _ = section("Training further, and how long")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| training")]  # no headers
    assert rows == further.markdown(new) + further.markdown([run for run in old if run["kind"] == "Further"])


def test_the_table_of_evenings_has_the_figures_of_its_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "evenings.json").read_text())
    text, _ = section("New text, evening by evening")
    assert evenings.markdown(record["runs"]) == [
        line for line in text.splitlines() if re.match(r"\| \w.*, (before|new text alone|now) ", line)
    ]


def test_the_tables_of_large_fleets_have_the_figures_of_their_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "flare.json").read_text())
    text = (ROOT / "docs" / "fleet.md").read_text()
    for stages in record["most_devices"].values():
        assert f"| {' | '.join(f'{devices:,}' for devices in stages.values())} |" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.endswith(" min |")]
    usual, away = record["simulated"][::2], record["simulated"][1::2]
    for (devices, _, busy, middle, last, again), before, after in zip(rows, usual, away, strict=True):
        figures = (f"{before['devices']:,}", f"{before['load']:.0%}", f"{before['p50']:.1f} s", f"{before['p99']:.1f} s")
        assert (devices, busy.replace(" ", ""), middle, last) == figures
        assert again == f"{after['seconds_until_usual'] / 60:.0f} min"
    for check in record["checks"]:
        for share in ("p50", "p99"):
            assert re.search(f"{check['real'][share]:.2f}(?: s)? \\((?:the model: )?{check['model'][share]:.2f}\\)", text)
    engine = json.loads((ROOT / "benchmarks" / "results" / "flare-rounds.json").read_text())
    middle, memory = engine["median"], engine["with_a_job_mb"]
    assert f"an exchange takes {middle['processor_server'] / engine['sites']:.2f} s of the server's processor" in text
    assert f"{middle['processor_b']:.2f} s of" in text
    assert f"a round {middle['seconds']:.0f} s" in text
    assert f"the server needs {memory['server']:.0f} MB, a site {memory['b']:.0f} MB" in text


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


def test_every_line_of_the_table_of_result_files_names_files_that_are_there():
    folder = ROOT / "benchmarks" / "results"
    for line in (folder / "README.md").read_text().splitlines():
        for name in re.findall(r"`([\w.-]+\.json)`", line.split("|")[1]) if line.startswith("| `") else ():
            assert (folder / name).is_file() or (folder / f"simulate-{name}").is_file(), name


MUTANT = Mutant(file="a.py", text="x < 1", replacement="x <= 1", tests=("tests",), reason="")


def test_a_mutant_is_put_where_its_text_stands_once():
    assert MUTANT.put_into("if x < 1:\n    pass\n") == "if x <= 1:\n    pass\n"
    for source in ("if x < 2:\n    pass\n", "if x < 1 or x < 1:\n    pass\n"):
        with pytest.raises(ValueError, match=r"a\.py has [02] times 'x < 1'"):
            MUTANT.put_into(source)


def test_every_mutant_fits_into_the_source_and_names_tests_that_are_there():
    mutants = read_mutants()
    assert len({mutant.key for mutant in mutants}) == len(mutants) >= 200
    for mutant in mutants:
        assert mutant.put_into((ROOT / mutant.file).read_text())
        paths = [ROOT / each.partition("::")[0] for each in mutant.tests if each.startswith("tests/")]
        files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py"))]
        text = "".join(file.read_text() for file in files)
        wanted = [each.partition("::")[2] for each in mutant.tests if "::" in each]
        if "-k" in mutant.tests:
            wanted += re.findall(r"\w+", re.sub(r"\b(and|or|not)\b", "", mutant.tests[-1]))
        assert all(path.exists() for path in paths), mutant.key
        assert all(word in text for word in wanted), mutant.key


def test_the_record_of_the_mutants_has_its_figures_in_the_text_and_names_each_survivor_with_a_reason():
    record = json.loads((ROOT / "benchmarks" / "results" / "mutants.json").read_text())
    assert record["killed"] + len(record["survivors"]) == record["tried"] <= record["mutants"]
    assert all(each["reason"] for each in record["survivors"])
    text = (ROOT / "docs" / "measurements.md").read_text()
    assert f"{record['tried']} of {record['mutants']} small faults" in text
    assert f"tests notice {record['killed']} of them" in text


@pytest.fixture
def judge(monkeypatch, tmp_path):
    """`silence --judge` on no text, of committed code, with records in folders of its own."""
    for module in (common, silence):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(origin, "commit", lambda: "33d29f372c28")
    (tmp_path / "text").mkdir()

    def run(*words):
        monkeypatch.setattr("sys.argv", ["silence", str(tmp_path / "text"), "--judge", *words])
        silence.main()

    return run


def test_a_zero_expert_is_judged_once_whichever_folder_has_the_record(judge, tmp_path):
    for folder in (tmp_path / "results", tmp_path / "work" / "results"):
        with pytest.raises(SystemExit, match=r"has no file sv.jsonl"):  # so far it would go
            judge()
        folder.mkdir(parents=True)
        (folder / "zero-expert-judged.json").write_text("{}")
        with pytest.raises(SystemExit, match=rf"^{folder}/zero-expert-judged.json has judged already, .* delete it if"):
            judge()
        (folder / "zero-expert-judged.json").unlink()


@pytest.mark.parametrize("words", [("--steps", "60"), ("--texts", "sv"), ("--precision", "float32")])
def test_a_zero_expert_is_judged_by_the_settings_that_were_frozen_alone(words, judge, capsys):
    with pytest.raises(SystemExit, match="2"):
        judge(*words)
    assert f"leave {words[0]} out" in capsys.readouterr().err


def test_a_zero_expert_is_not_judged_while_code_is_not_committed(judge, monkeypatch):
    monkeypatch.setattr(origin, "commit", lambda: "33d29f372c28-dirty")
    with pytest.raises(SystemExit, match="files differ from 33d29f372c28; commit all changes first"):
        judge()


def test_a_kept_home_is_of_the_text_at_hand(monkeypatch, tmp_path, tiny_path):
    monkeypatch.setattr(quality, "find_base", lambda name: (name, tiny_path))
    source, homes = tmp_path / "de.jsonl", []
    for seed in (1, 2, 1):
        written = some_text(40, seed).split("\n\n")
        source.write_text("\n".join(json.dumps({"text": each}) for each in written))
        training = quality.open_home(tmp_path, source, [*quality.LINES, "context=32"])
        homes.append(training.home.root)
        kept = corpus(training.home, training.settings)
        assert sorted(each.text for split in SPLITS for each in kept.documents(split)) == sorted(written)
    assert homes[0] == homes[2] != homes[1]


def test_the_minutes_to_the_same_loss_lie_on_the_line_between_two_trainings():
    runs = [{"curve": [[1.0, 9.0], [4.0, 3.2]], "best": 3.2}, {"curve": [[8.0, 3.0]], "best": 3.0}]
    assert quality.reached(runs, 3.1) == pytest.approx(6.0)
    assert quality.reached(runs, 3.3) == pytest.approx(2.0)
    assert quality.reached(runs, 2.9) is None
    assert quality.reached(runs[:1], 3.3) == 4.0
    assert quality.minutes({"expert": 4.0, "router": 3.0, "validation": 10.0}, 30, 10, 1) == pytest.approx(160 / 60, abs=1e-3)


def test_a_plan_counts_the_minutes_that_trainings_took():
    record = json.loads((ROOT / "benchmarks" / "results" / "quality-per-minute.json").read_text())
    for run in record["runs"]:
        schedule = Schedule(**run["schedule"])
        predicted = seconds_left(of_steps(run["seconds"]["expert"], schedule), schedule, has_router=True) / 60
        measured = run["curve"][-1][0] + run["seconds"]["validation"] / 60  # and the one before the first step
        assert predicted == pytest.approx(measured, rel=0.05), run["text"]


TRIED = """
from pathlib import Path
from benchmarks.mutants.listed import read_mutants
from benchmarks.mutants.tree import Tree

mutant = next(each for each in read_mutants() if "self.closing_rows" in each.key)
print(Tree(Path("{folder}")).try_mutant(mutant)["outcome"])
"""


def test_a_mutant_that_a_test_notices_is_noticed(tmp_path):
    command = [sys.executable, "-c", TRIED.format(folder=tmp_path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "killed\n"
