"""One voice: help, quiet, narrow and colourless screens, logs, exit codes and names that a shell completes."""

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

from comigs_edge import cli
from comigs_edge.commands.examples import EXAMPLES
from comigs_edge.commands.help import walk
from comigs_edge.commands.table import COMMANDS as COMMANDS_LISTED
from comigs_edge.inference.history import History

PROGRAM = [sys.executable, "-m", "comigs_edge"]
COMMANDS = [words for words, _ in walk(typer.main.get_command(cli.app))]


def screen(*words, width=80, code=0):
    """What a command of its own process shows, standard output and error apart."""
    result = subprocess.run(
        [*PROGRAM, *map(str, words)], capture_output=True, text=True, env=os.environ | {"COLUMNS": str(width)}, check=False
    )
    assert result.returncode == code, result
    return result.stdout, result.stderr


@pytest.fixture
def helps(monkeypatch):
    """The help of every command, in a terminal so wide."""

    @functools.cache
    def show(width):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
        return {words: CliRunner().invoke(cli.app, [*words, "--help"]).output for words in COMMANDS}

    return show


# Help -----------------------------------------------------------------------------------------------------------------


def test_every_command_shows_an_example(helps):
    for words, text in helps(100).items():
        assert EXAMPLES[" ".join(words)]
        assert all(example in text for example in EXAMPLES[" ".join(words)]), words


def test_the_list_of_commands_says_what_their_own_help_begins_with():
    for name, (_, said) in COMMANDS_LISTED.items():
        assert typer.main.get_command(cli.app).commands[name].help.split("\n\n")[0].replace("\n", " ") == said


def test_the_list_of_commands_and_what_a_shell_completes_import_none_of_them():
    code = (
        "import sys; from typer.testing import CliRunner; from comigs_edge.cli import app;"
        "r = CliRunner().invoke(app, {words}, env={env}).output;"
        "print('rollback' in r, [name for name in sys.modules if name in {modules}])"
    )
    modules = sorted({f"comigs_edge.commands.{file}" for file, _ in COMMANDS_LISTED.values()} | {"numpy"})
    complete = {"_ROOT_COMPLETE": "complete_bash", "COMP_WORDS": "root ro", "COMP_CWORD": "1"}
    for words, env in ((["--help"], {}), ([], complete)):
        filled = code.format(words=words, env=env, modules=modules)
        out = subprocess.run([sys.executable, "-c", filled], check=True, capture_output=True, text=True).stdout
        assert out.strip() == "True []"


def test_every_example_is_understood():
    for example in (example for examples in EXAMPLES.values() for example in examples):
        command, rest = typer.main.get_command(cli.app), shlex.split(example)[1:]
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        command.make_context("comigs-edge", rest[: rest.index("<")] if "<" in rest else rest)


@pytest.mark.parametrize("width", [40, 100])
def test_what_stands_for_a_value_says_what_it_is_and_not_its_type(helps, width):
    shown = helps(width)
    for words, text in shown.items():
        assert not re.search(r"<\w+|[{}]|\b(INTEGER|FLOAT|BOOLEAN)\b", text), words
    assert re.search(r"--minutes +MINUTES", shown["train",])
    assert re.search(r"--plan +NAME=VALUE", shown["train",])
    assert re.search(r"simulate( *\n *| )\[OPTIONS\] NAME\|FILE", shown["simulate",])


def test_help_in_forty_columns_cuts_no_name_and_no_line(helps):
    shown = helps(40)
    for words, command in walk(typer.main.get_command(cli.app)):
        text = shown[words]
        assert "…" not in text, words
        assert max(map(len, text.split("Examples:")[0].splitlines())) <= 40, words
        shown_ones = [each for each in command.params if not getattr(each, "hidden", False)]
        names = [name for each in shown_ones for name in (*each.opts, *each.secondary_opts) if name[0] == "-"]
        assert all(re.search(rf"{name}[\s,]", text) for name in names), words


def test_help_in_eighty_columns_cuts_no_word(helps):
    for words, text in helps(80).items():
        assert "…" not in text, words


def test_the_help_of_sync_in_forty_columns():
    shown, _ = screen("sync", "--help", width=40)
    assert shown.replace("python -m comigs_edge", "comigs-edge") == """\
Usage: comigs-edge sync 
           [OPTIONS]

  Exchange generalists with the fleet
  now. `train` does it by itself.

Options:
  --dry-run      Show what would leave
                 this device, and send
                 nothing.
  --address URL  The coordinator moved:
                 its new address,
                 https://host:port.
  --json         Print JSON.
  -q, --quiet    No bars, no progress,
                 no hints; results,
                 warnings and errors
                 stay.
  --help         Show this message and
                 exit.

  Examples:
  comigs-edge sync
  comigs-edge sync --dry-run
"""  # fmt: skip


# Quiet, and logs --------------------------------------------------------------------------------------------------------


def test_quiet_leaves_results_warnings_and_errors_wherever_it_stands(run, ready, tmp_path):
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "more.txt").write_text("These are the eight words of this text.")
    loud = run("data", "add", tmp_path / "odd.txt", tmp_path / "more.txt")
    assert "next: " in loud.stdout
    for words in (["--quiet", "data", "add"], ["data", "add", "-q"]):
        result = run(*words, tmp_path / "odd.txt", tmp_path / "more.txt")
        assert "documents added" in result.stdout
        assert "next: " not in result.stdout
        assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["warning"]
    assert run("rollback", "-q", code=1).stderr.startswith("error: ")
    assert "next: " in run("status").stdout  # for that command alone


def test_a_quiet_training_says_its_result_alone(run, ready):
    result = run("train", "--steps", 2, "--quiet")
    assert result.stderr == ""
    assert result.stdout.startswith("trained: validation loss")


def test_a_log_has_neither_bars_nor_colours(ready):
    shown, log = screen("train", "--steps", 2)
    assert not re.search("[\x1b━╸⠋⠙⠹]|ETA", shown + log)
    assert "expert step 2/2" in log


def test_no_colour_is_shown_where_none_is_wanted(ready):
    shown = {}
    for name in ("NO_COLOR", "NOTHING"):
        environment = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm", name: "1"}
        shown[name] = "".join(
            subprocess.run([*PROGRAM, *words], capture_output=True, text=True, env=environment, check=False).stdout
            for words in (["status"], ["doctor"], ["data", "list"], ["train", "--help"])
        )
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", shown["NOTHING"])
    assert not re.search(r"\x1b\[[0-9;]*[349][0-7]m", shown["NO_COLOR"])


@pytest.mark.parametrize("words", [["status"], ["paths"], ["data", "list"], ["plan", "--no-measure"], ["models", "list"]])
def test_no_screen_of_forty_columns_is_cut(ready, words):
    shown, _ = screen(*words, width=40)
    assert shown
    assert "…" not in shown
    assert all(len(line) <= 40 for line in shown.splitlines() if re.search("[│┃━─]", line))  # others are the terminal's to wrap


# Exit codes -----------------------------------------------------------------------------------------------------------


def test_a_coordinator_that_is_only_away_is_exit_code_75(run, ready, coordinator, monkeypatch):
    run("join", coordinator.invite())
    run("train", "--steps", 2)
    coordinator.stop()
    for waits in ("rounds", "sync"):
        monkeypatch.setattr(f"comigs_edge.fleet.{waits}.PATIENCE", 0.1)
    result = run("sync", code=75)
    assert result.stderr.splitlines()[-1].startswith("error: ")
    run("train", "--steps", 2)  # what was trained is there: that is no failure


def test_joining_one_that_is_away_is_exit_code_75(run, ready, coordinator, monkeypatch):
    link = coordinator.invite()
    coordinator.stop()
    monkeypatch.setattr("comigs_edge.fleet.joining.PATIENCE", 0.1)
    run("join", link, code=75)


@pytest.mark.parametrize(
    ("words", "code"),
    [(["status"], 0), (["train", "--resume"], 1), (["train", "--steps", "0"], 2), (["nonsense"], 2), (["sync"], 1)],
)
def test_exit_codes_are_those_of_the_table(run, ready, words, code):
    run(*words, code=code)


# Paths ------------------------------------------------------------------------------------------------------------------


def test_paths_are_those_where_things_lie(run, home, ready):
    found = json.loads(run("paths", "--json").stdout)
    assert found["home"] == str(home)
    for name in ("config", "base", "data"):
        assert os.path.exists(found[name])
    assert run("chats", "path").stdout.strip() == found["chats"]
    shown = run("paths").stdout
    assert f"adapters      {home / 'adapters'}  (not there yet)\n" in shown
    assert f"data          {home / 'data' / 'documents.db'}\n" in shown


def test_paths_are_shown_before_there_is_a_home(run, home):
    assert run("paths").stdout.splitlines()[-1] == "next: comigs-edge init"
    assert not home.exists()


# Status -----------------------------------------------------------------------------------------------------------------


def test_status_reads_no_page_of_the_text(ready, run, monkeypatch):
    # SQLite says how each statement is answered: from an index alone, or with the rows, which hold the text.
    statements, connect = [], sqlite3.connect

    def traced(*arguments, **options):
        db = connect(*arguments, **options)
        db.set_trace_callback(statements.append)
        return db

    monkeypatch.setattr(sqlite3, "connect", traced)
    run("status")
    monkeypatch.undo()
    asked = [each for each in statements if " document " in each and each.startswith("select")]
    assert asked
    with contextlib.closing(connect(ready / "data" / "documents.db")) as db:
        for statement in asked:
            plan = [row[-1] for row in db.execute(f"explain query plan {statement}") if " document" in row[-1]]
            assert all("COVERING INDEX" in each or "document_unread" in each for each in plan), (statement, plan)


# Completion ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("train --profile jet", {"jetson", "jetson-agx"}),
        ("train --plan ba", {"batch=", "backend="}),
        ("chat --plan gpu", {"gpu_layers="}),
        ("simulate multi", {"multilingual"}),
        ("simulate many --method fed", {"fedavg", "fedalt", "fedex-lora", "fedsa-lora"}),
        ("init --base smol", {"smollm2-135m-instruct"}),
        ("chats show ", {"1"}),
        ("chat --chat ", {"1"}),
        ("rollback --to 1", {"12"}),
        ("models use ", {"1", "2"}),
        ("bases pull tiny", {"tinyllama-1.1b-chat"}),
    ],
)
def test_a_shell_completes_names(ready, typed, offered):
    for number in (1, 2):
        (ready / "adapters" / f"000{number}").mkdir(parents=True)
    History(ready / "chats.db").ask(None, "", "hello")
    (ready / "fleet" / "generalists").mkdir(parents=True)
    (ready / "fleet" / "generalists" / "000012.safetensors").touch()
    environment = {"_COMIGS_EDGE_COMPLETE": "complete_bash", "COMP_WORDS": f"comigs-edge {typed}"}
    environment["COMP_CWORD"] = str(len(typed.split(" ")))
    result = CliRunner().invoke(cli.app, [], prog_name="comigs-edge", env=environment)
    assert offered <= set(result.output.split())
    assert all(each.startswith(typed.split(" ")[-1]) for each in result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize("words", [("models", "list"), ("data", "list"), ("plan", "--no-measure")])
def test_options_of_the_program_may_stand_before_each_word_and_behind_the_last(ready, run, words):
    assert "next:" in run(*words).stdout
    for place in range(3):
        typed = [*words[:place], "{}", *words[place:]]
        for option in ("-q", "--quiet"):
            assert "next:" not in run(*(option if each == "{}" else each for each in typed)).stdout, typed
        elsewhere = [word for each in typed for word in (("--home", "/nowhere/else") if each == "{}" else (each,))]
        assert "there is no home at /nowhere/else" in run(*elsewhere, code=1).stderr
        os.environ["COMIGS_EDGE_HOME"] = str(ready)


def test_json_may_stand_before_the_command_that_prints_it(ready, run):
    expected = json.loads(run("models", "list", "--json").stdout)
    for words in (["--json", "models", "list"], ["models", "--json", "list"], ["--json", "-q", "models", "list"]):
        assert json.loads(run(*words).stdout) == expected
    assert json.loads(run("--json", "status").stdout)["home"] == str(ready)
    for words in (["data", "remove", "--json", "1"], ["--json", "data", "remove", "1"], ["data", "--json", "remove", "1"]):
        assert "remove prints no JSON; leave --json out" in run(*words, code=2).stderr
    assert "1" in run("data", "list").stdout


def test_a_terminal_that_only_prints_lines_shows_no_empty_ones(ready, tmp_path):
    (tmp_path / "more.txt").write_text("the hen stands on the roof of the inn\n" * 9)
    words = shlex.join([sys.executable, "-m", "comigs_edge", "data", "add", str(tmp_path / "more.txt")])
    environment = os.environ | {"TERM": "dumb", "COLUMNS": "80"}
    shown = subprocess.run(["script", "-qec", words, "/dev/null"], env=environment, capture_output=True, text=True, timeout=100)
    assert shown.stdout.startswith("sample 1")


def test_what_is_in_use_is_not_offered_to_be_deleted(ready, run, tiny_path, tmp_path, monkeypatch):
    monkeypatch.setenv("COMIGS_EDGE_BASES", str(tmp_path / "bases"))
    (tmp_path / "bases").mkdir()
    for name in ("mine", "other"):
        shutil.copyfile(tiny_path, tmp_path / "bases" / f"{name}.gguf")
    run("init", "--force", "--base", "mine")
    for number in (1, 2):
        (ready / "adapters" / f"000{number}").mkdir(parents=True)
    for typed, offered in (("models rm ", ["1"]), ("bases rm ", ["other"])):
        environment = {"_COMIGS_EDGE_COMPLETE": "complete_bash", "COMP_WORDS": f"comigs-edge {typed}", "COMP_CWORD": "3"}
        assert CliRunner().invoke(cli.app, [], prog_name="comigs-edge", env=environment).output.split() == offered


def test_a_shell_that_completes_in_no_home_gets_nothing(home):
    environment = {"_COMIGS_EDGE_COMPLETE": "complete_bash", "COMP_WORDS": "comigs-edge chats show ", "COMP_CWORD": "3"}
    assert CliRunner().invoke(cli.app, [], prog_name="comigs-edge", env=environment).output.strip() == ""
    assert not home.exists()
