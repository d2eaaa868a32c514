"""README and docs: what they tell people to type runs or exists, links lead somewhere, figures are those of the files."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from comigs_edge.cli import app
from coordinator.__main__ import main as coordinator_main
from tests.docs_commands import FENCE, PAGES, README, ROOT, blocks, named
from tests.tiny import some_text

RESULTS = ROOT / "benchmarks" / "results"
RUN_PAGES = (README, ROOT / "docs" / "guide.md", ROOT / "docs" / "troubleshooting.md")
SHORTER = {"--minutes": ("--steps", "2")}  # of a command that is run: the option and its value
MAY_FAIL = {"doctor"}  # its exit code tells about the machine

# Tables of figures: the start of a row, its file, how its numbers are written, their unit, and where they are in the file.
README_FIGURES = (
    (
        "German manuals", "main-job.json", "{:.3f}", 1,
        ("de/evaluation/bits_per_byte/base", "de/evaluation/bits_per_byte/mixture"),
    ),
    ("torch against", "main-job.json", "{:.1e}", 1, ("exactness/1 generalist + 1 specialist/mixture/mean_kl",)),
    (
        "parallel experts", "bench.json", "{:.3f}", 1,
        ("models/parallel/megabytes_ratio_to_base", "models/parallel/threads/2/generation/ratio_to_base"),
    ),
    ("what a device", "round-bytes.json", "{:.1f}", 1e6, ("rows/SmolLM2-135M, parallel 32 wide/float16",)),
    ("coordinator", "kills.json", "{:.0f}", 1, ("kills", "acknowledged", "lost", "doubled")),
    (
        "simulated fleet", "simulate-topics-ood-quick-4e-3.json", "{:.4f}", 1,
        ("methods/comigs-edge/bits_per_byte", "methods/fedavg/bits_per_byte"),
    ),
)  # fmt: skip
FLEET = ("bits_per_byte/base", "bits_per_byte/mixture", "bits_per_byte/generalist", "bits_per_byte/specialists")
MEASUREMENTS_FIGURES = (
    (
        "German text", "main-job.json", "{:.1f}", 1,
        ("de/evaluation/perplexity/base", "de/evaluation/perplexity/mixture"),
    ),
    ("one person's chats", "main-job.json", "{:.3f}", 1,
     ("user03/evaluation/bits_per_byte/base", "user03/evaluation/bits_per_byte/mixture")),
    *((f"{name}", "fleet.json", "{:.3f}", 1, tuple(f"evaluated/{name}/{path}" for path in FLEET))
      for name in ("de", "fr", "it", "nl")),
    ("1,062 SIGKILLs", "kills.json", "{:,}", 1, ("kills", "acknowledged", "lost", "doubled", "generalists_compared")),
    ("200 power cuts", "power-cuts.json", "{:,}", 1, ("synced/cuts", "synced/acknowledged", "fsync_does_nothing/lost")),
    ("memory over ten", "load.json", "{}", 1, ("mixed/rss_slope_mb_per_hour",)),
    ("signed requests", "load.json", "{:.0f}", 1, ("polls/requests_per_second", "polls/p99_ms", "flood/p99_ms")),
    ("... or after a second", "bad-member.json", "{}", 1, ("planted/bound_on/after_a_second_update/probability",)),
    ("PEFT LoRA of rank 16", "rivals.json", "{:.2f}", 1, ("cases/peft/seconds",)),
    ("parallel experts, nothing", "rivals.json", "{:.2f}", 1,
     ("cases/ours-parallel-none/seconds", "cases/ours-parallel-none/speed_to_peft")),
)  # fmt: skip


class Parsed(Exception):
    """Raised once arguments were parsed, in place of running the command."""


@pytest.fixture
def typed_folder(tmp_path, monkeypatch):
    """A working folder with the text that the pages name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text(some_text())
    turns = [("user", "assistant")[number % 2] for number in range(4)]
    chats = [
        {"messages": [{"role": role, "content": some_text(1, 10 * chat + n)[:400]} for n, role in enumerate(turns)]}
        for chat in range(60)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    return tmp_path


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.stem)
def test_every_block_that_is_not_marked_runs_in_the_order_of_the_page(page, run, home, tiny_path, typed_folder):
    if not any(typed.words[1] == "init" for block in blocks(page) if block.runs for typed in block.commands):
        _init(run, home, ["init"], tiny_path)
    for block in blocks(page):
        for typed in block.commands if block.runs else ():
            program, *words = typed.words
            assert program == "comigs-edge", (str(block), "only comigs-edge runs without network, root and systemd")
            result = _init(run, home, words, tiny_path) if words[0] == "init" else _run(run, words)
            for line in typed.printed:
                if line.startswith("next: "):
                    assert result.stdout.rstrip().endswith(line), (str(block), words)


def _init(run, home, words, base):
    """`init` with the tiny base, and settings with which a training takes a second."""
    result = run(*words, "--base", base)
    settings = home / "config.toml"
    quick = "[train]\nbatch = 4\ncontext = 64\nrouter_period = 2\nrouter_steps = 1\nvalidation_rows = 4\n"
    settings.write_text(settings.read_text().replace("[train]\n", quick).replace("# context = 2048", "context = 256"))
    return result


def _run(run, words):
    words = list(words)
    for option, replacement in SHORTER.items():
        if option in words:
            place = words.index(option)
            words[place : place + 2] = replacement
    return run(*words, code=None if words[0] in MAY_FAIL else 0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_block_is_understood(page, monkeypatch):
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(*arguments):
        parse_args(*arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    for block in blocks(page):
        for typed in block.commands:
            words = [Path(word).name if number == 0 else word for number, word in enumerate(typed.words)]
            if words[0] == "comigs-edge":
                command, rest = _descend(words[1:])
                if not hasattr(command, "commands"):
                    command.make_context("comigs-edge", rest)  # raises for what does not exist, is missing or impossible
            elif words[0] == "comigs-coordinator":
                with pytest.raises(Parsed):
                    coordinator_main(words[1:])
            _check_names(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_option_within_a_sentence_exists(page, capsys):
    for words in named(page):
        if words[0] == "comigs-coordinator":
            depth = 2 if words[1] == "service" else 1
            with pytest.raises(SystemExit):
                coordinator_main([*words[1 : 1 + depth], "--help"])
            text = capsys.readouterr().out
            assert all(word in text for word in words if word.startswith("--")), words
        _check_names(words)


def _check_names(words):
    """That the names of commands, options and targets exist; values are not looked at."""
    if words[0] == "comigs-edge":
        command, rest = _descend(words[1:])
        options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= options | {"--help"}, words
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        assert words[1] in targets, words


def _descend(words):
    """The command that the words name, and what is left of them; raises `KeyError` for a name that does not exist."""
    command, rest = get_command(app), list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        command = command.commands[rest.pop(0)]
    return command, rest


# Links and size -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_relative_link_and_anchor_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by the rule of repository hosts: small letters, spaces to dashes."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_has_at_most_eleven_kilobytes():
    assert len(README.read_bytes()) <= 11_000


def test_every_page_of_the_docs_is_linked_from_the_readme():
    text = README.read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page.name


# Figures and sentences ------------------------------------------------------------------------------------------------


def _value(data, path: str):
    """What is at the path; an entry of a list is named by its method or model."""
    for name in path.split("/"):
        if isinstance(data, list):
            data = next(each for each in data if name in (each.get("method"), each.get("model")))
        else:
            data = data[name]
    return data


def _figures(row) -> tuple[str, list[str]]:
    """A row of the tables above: the start of the page's row, and its numbers from the file, as the page writes them."""
    start, name, form, unit, paths = row
    data = json.loads((RESULTS / name).read_text())
    return start, [form.format(_value(data, path) if unit == 1 else _value(data, path) / unit) for path in paths]


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


def test_the_figures_of_the_readme_are_those_of_the_result_files():
    rows = _rows(README.read_text().split("<!-- figures:")[1].split("<!-- end of figures -->")[0])[1:]
    for (what, written, file), row in zip(rows, README_FIGURES, strict=True):
        start, numbers = _figures(row)
        assert what.startswith(start)
        assert file == f"`{row[1]}`"
        assert written == ", ".join(numbers)


@pytest.mark.parametrize("row", MEASUREMENTS_FIGURES, ids=lambda row: row[0])
def test_figures_of_the_measurements_are_those_of_the_result_files(row):
    start, numbers = _figures(row)
    lines = [cells for cells in _rows((ROOT / "docs" / "measurements.md").read_text()) if cells[0].startswith(start)]
    assert any(all(re.search(rf"(?<![\d.]){re.escape(each)}(?!\d)", " ".join(cells)) for each in numbers) for cells in lines), (
        numbers
    )


@pytest.mark.parametrize("recipe", ["multilingual", "domains", "topics-ood"])
def test_the_first_tables_of_the_results_are_those_of_the_files(recipe):
    text = (ROOT / "docs" / "results.md").read_text()
    rows = [re.findall(r"\d\.\d{3,4}\b", line) for line in text.splitlines() if line.startswith("| ")]
    for method in json.loads((RESULTS / f"simulate-{recipe}-quick.json").read_text())["methods"]:
        scores = [method["bits_per_byte"], *method["by_seed"].values()]
        assert any({f"{score:.4f}" for score in scores} <= set(row) for row in rows), (recipe, method["method"])


def test_the_sentences_of_the_troubleshooting_page_are_those_of_the_program():
    product = ("comigs_edge", "quantize", "profiles", "coordinator")
    source = "\n".join(path.read_text() for room in product for path in sorted((ROOT / room).rglob("*.py")))
    source = re.sub(r"\"\s*\n?\s*(?:\+ )?f?\"", "", source + (ROOT / "Makefile").read_text())  # literals side by side
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    symptoms = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    sentences = [sentence for symptom in symptoms for sentence in re.findall(r"`([^`]+ [^`]+)`", symptom)]
    assert len(sentences) > 40
    for sentence in sentences:
        for part in sentence.split("..."):
            assert part.strip("(); ,'") in source, sentence
