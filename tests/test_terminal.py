"""Terminals, pipes and encodings: nothing ends in a traceback, nothing is lost, and what counts is seen."""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from comigs_edge import cli, llamacpp
from comigs_edge.commands import console, message, train_screen
from comigs_edge.commands.conversation import Conversation
from comigs_edge.commands.train_screen import TrainScreen
from comigs_edge.inference.record import Record
from comigs_edge.training.event import Event

PROGRAM = [sys.executable, "-m", "comigs_edge"]
ODD = "odd[bold] [ \x1b[2J \udce9\n.txt"  # markup, an escape sequence, a byte that is not UTF-8, a new line


def shell(line, **environment):
    """The result of a line in which $C is the program."""
    words = ["bash", "-c", line.replace("$C", " ".join(PROGRAM))]
    result = subprocess.run(words, capture_output=True, env=os.environ | environment, stdin=subprocess.DEVNULL, timeout=120)
    assert b"Traceback" not in result.stdout + result.stderr, result.stderr
    return result


def files(listed):
    """The files of `data list`, one after the other: as paragraphs, or folded in the second column of a table."""
    return "".join(re.findall(r"^│[^│]*│ ([^│]*?) *│", listed, re.MULTILINE)) or listed.replace("\n", "")


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "shown"),
    [
        ("$C chat --base <&-", 1, b"there is no message"),
        ("$C status >&-", 0, b""),
        ("$C status --json >&- 2>&- <&-", 0, b""),
        ("$C data list 2>&-", 0, b"next:"),
        ("$C data add /nowhere 2>&-", 1, b""),
        ("$C data list | true; exit ${PIPESTATUS[0]}", 1, b""),
        ("$C status --json >/dev/full", 1, b"No space left on device"),
        ("TERM=dumb $C data list", 0, b"next:"),
        ("COMIGS_EDGE_HOME='~nobody-here' $C status", 1, b"name a folder by its whole path"),
    ],
)
def test_closed_full_and_dead_streams_end_in_a_code_and_at_most_a_sentence(ready, line, code, shown):
    result = shell(line)
    assert result.returncode == code, result.stderr
    assert shown in result.stdout + result.stderr


def test_a_closed_stream_is_never_a_file_that_libraries_print_into(ready):
    before = shell("$C data list --json").stdout
    shell("$C evaluate 0<&- 1>&- 2>&-")  # llama.cpp writes to number 2
    assert shell("$C data list --json").stdout == before


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_an_encoding_without_a_character_gets_its_escape(ready, tmp_path, run, environment):
    (tmp_path / "größe.txt").write_text("Ein Text aus acht Wörtern mit Größe, für alle, sagt sie.")
    run("data", "add", tmp_path / "größe.txt")
    listed = shell("$C data list", **environment).stdout.decode()
    assert "größe.txt" in listed or r"gr\xf6\xdfe.txt" in listed
    paths = [each["path"] for each in json.loads(shell("$C data list --json", **environment).stdout)["files"]]
    assert str(tmp_path / "größe.txt") in paths


# Foreign names and texts ----------------------------------------------------------------------------------------------


def test_a_name_of_any_bytes_is_added_listed_and_removed(ready, run, tmp_path):
    path = tmp_path / ODD
    path.write_text("Here are eight words or more, with [bold]brackets[/bold] and [/] \x1b[2J in them.")
    shown = run("data", "add", path).stdout
    assert "[bold]brackets[/bold] and [/] \\x1b[2J in them." in shown
    listed = run("data", "list").stdout
    assert r"odd[bold] [ \x1b[2J \udce9\n.txt" in files(listed)
    newest = max(each["id"] for each in json.loads(run("data", "list", "--json").stdout)["files"])
    assert len(json.loads(run("data", "list", "--json").stdout)["files"]) == 2
    run("data", "add", path)  # the same file, not another
    assert len(json.loads(run("data", "list", "--json").stdout)["files"]) == 2
    assert r"odd[bold] [ \x1b[2J \udce9\n.txt was removed" in run("data", "remove", newest).stdout


def test_a_home_of_any_name_says_its_name(run, tmp_path, tiny_path, monkeypatch):
    home = tmp_path / "my [bold] [/x] home"
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(home))
    for result in (run("init", "--base", tiny_path), run("status"), run("init")):
        assert str(home) in result.stdout


def test_halves_of_characters_in_an_export_become_the_sign_for_them(ready, run, tmp_path):
    (tmp_path / "cut.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a smile \\ud83d and eight words more for it"}, '
        '{"role": "assistant", "content": "Eight words are enough for an answer here."}]}'
    )
    assert "a smile � and" in run("data", "add", tmp_path / "cut.jsonl").stdout


def test_what_is_no_ordinary_file_is_skipped_and_never_waited_for(ready, run, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "a.txt").write_text("These are the eight words of this text.")
    os.mkfifo(folder / "pipe.txt")
    (folder / "null.md").symlink_to("/dev/zero")
    (folder / "gone.txt").symlink_to("nowhere")
    result = run("data", "add", folder, folder / "pipe.txt")
    assert "1 documents added from 1 files" in result.stdout
    assert result.stderr.count("was skipped: no ordinary file") == 3
    assert "gone.txt was skipped: No such file or directory" in result.stderr


def test_help_texts_lose_no_word_to_markup(run):
    def commands(group, words=()):
        for name, command in group.commands.items():
            yield (*words, name)
            if hasattr(command, "commands"):
                yield from commands(command, (*words, name))

    import typer.main

    for words in commands(typer.main.get_command(cli.app)):
        text = " ".join(run(*words, "--help").stdout.split())
        assert ", ," not in text
        assert "\\[" not in text
    assert "the section pause of config.toml says when" in re.sub("[│\\s]+", " ", run("train", "--help").stdout)


# Chat -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Every message that a chat is asked; the answer is its length."""
    messages = []

    def answer(self, text):
        messages.append(text)
        yield f"{len(text)} characters"

    monkeypatch.setattr("comigs_edge.inference.chat.Chat.answer", answer)
    return messages


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        ([], "one\ntwo\n", "one\ntwo"),
        (["--prompt", "-"], "one\ntwo\n", "one\ntwo"),
        (["--prompt", "Sum it up", "--file", "-"], "one\ntwo\n", "Sum it up\n\none\ntwo"),
        (["--prompt", "/etc/fstab what is this"], "", "/etc/fstab what is this"),
        (["--prompt", "caf\udce9"], "", "caf�"),
    ],
)
def test_a_pipe_is_one_message_and_the_answer_alone_is_the_output(ready, run, asked, arguments, given, message):
    result = run("chat", "--base", *arguments, input=given)
    assert asked == [message]
    assert result.stdout == f"{len(message)} characters\n"


def test_a_file_stands_below_the_prompt(ready, run, asked, tmp_path):
    (tmp_path / "page.txt").write_text("the page")
    run("chat", "--base", "--prompt", "Sum it up", "--file", tmp_path / "page.txt")
    (tmp_path / "page.txt").write_text("the page", "utf-16")
    run("chat", "--base", "--file", tmp_path / "page.txt")
    assert asked == ["Sum it up\n\nthe page", "the page"]


def test_a_file_or_pipe_of_binary_data_is_no_message(ready, run, asked, tmp_path):
    (tmp_path / "zeros").write_bytes(b"a\0b")
    assert "zeros cannot be read: binary data; name" in run("chat", "--base", "--file", tmp_path / "zeros", code=1).stderr
    assert "standard input is binary data" in run("chat", "--base", input="a\0b", code=1).stderr
    assert asked == []


@pytest.mark.parametrize(("given", "says"), [("echo more", True), ("true", False), ("cat /dev/null", False)])
def test_what_is_piped_beside_a_prompt_is_named_as_unread(ready, given, says):
    result = shell(f"{given} | (sleep 0.2; $C chat --base --prompt hello --seed 1 --max-tokens 6)")
    assert result.returncode == 0
    assert (b"standard input is not read beside --prompt" in result.stderr) == says


@pytest.mark.parametrize("arguments", [["--prompt", ""], ["--prompt", "-"], []])
def test_no_message_is_exit_code_1(ready, run, arguments):
    assert "there is no message to answer" in run("chat", "--base", *arguments, input=" \n", code=1).stderr


def test_a_model_that_fails_is_exit_code_1(ready, run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("llama_decode returned -3")

    monkeypatch.setattr(llamacpp.llama_cpp.Llama, "generate", fail)
    result = run("chat", "--base", "--prompt", "hello", code=1)
    assert "llama.cpp could not answer (llama_decode returned -3)" in result.stderr
    assert "this message has" in run("chat", "--base", "--prompt", "word " * 3000, code=1).stderr


def test_a_path_is_a_message_and_an_unknown_word_says_the_commands(ready, run, asked, monkeypatch):
    monkeypatch.setattr(message, "is_typed", lambda: True)
    lines = [
        "/etc/fstab what is this?",
        "/nonsense",
        "/exit now please",
        '"""one',
        "",
        'two"""',
        '"""one line"""',
        "/exit",
        "never",
    ]
    result = run("chat", "--base", input="\n".join(lines))
    assert asked == ["/etc/fstab what is this?", "one\n\ntwo", "one line"]
    assert result.stdout.count("/clear ") == 1  # for what is no command
    assert "/exit takes no text" in result.stdout


def test_an_answer_cannot_move_the_cursor(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    pieces = ["a\x1b[2J", "b\r\n\tdone \u200d\u3000"]
    session = SimpleNamespace(answer=lambda _: (piece for piece in pieces), system="", model=Path("m"), left_out=0)
    record, unused = Record(None, print), lambda *_: None
    Conversation(session=session, record=record, is_base=True, renew=unused, open_other=unused).say("hello")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\r\n\tdone \u200d\u3000\n"


def test_what_is_pasted_is_one_message(ready):
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [*PROGRAM, "chat", "--base", "--temperature", "0", "--max-tokens", "6"])
    shown, end, sent = b"", time.monotonic() + 60, False
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                break
        if not sent and b"> " in shown:
            sent = os.write(terminal, b"\x1b[200~one\ntwo\nthree\x1b[201~\r")
        if sent and shown.count(b"\n> ") >= 2:
            os.write(terminal, b"\x04")
            sent, end = True, min(end, time.monotonic() + 5)
    os.close(terminal)
    os.waitpid(pid, 0)
    assert b"\x1b[?2004h" in shown  # the terminal is asked for it
    assert shown.count(b"\n> ") == 2


# Widths ---------------------------------------------------------------------------------------------------------------


def drawn(monkeypatch, width):
    """A training's line in a terminal so wide."""
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(train_screen, "notes", screen)
    trainer = SimpleNamespace(
        expert_steps=0, router_steps=0, last_loss=4.428, first_loss=5.0, schedule=SimpleNamespace(steps=400)
    )
    run = SimpleNamespace(trainer=trainer, steps_done=0, total_steps=400)
    clock = iter(range(0, 100_000, 1000))
    line = TrainScreen(run, lambda: float(next(clock)), Path("/nowhere/holder.json"))
    event = Event(phase="expert", expert_steps=29, router_steps=0, loss=4.679, tokens=10, validation_loss=None, is_best=False)
    line.show_step(event, 290)
    screen.print(line.make_tasks_table(line.tasks))
    return screen.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_trainings_line_shows_step_time_and_end_in_any_width(monkeypatch, width):
    (line,) = drawn(monkeypatch, width)
    assert len(line) <= width
    assert "29/400" in line
    assert re.search(r"\d:\d\d:\d\d ETA \S+ *$", line)
    assert "…" not in line
    assert ("validation 4.428" in line) == (width >= 80)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_ids_and_the_ends_of_names_are_in_every_list(ready, run, tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    path = tmp_path / ("a-rather-long-folder-name-" * 3) / "the-end.txt"
    path.parent.mkdir()
    path.write_text("These are the eight words of this text.")
    run("data", "add", path)
    listed = run("data", "list").stdout
    assert "…" not in listed
    assert str(path) in files(listed)
    for source in json.loads(run("data", "list", "--json").stdout)["files"]:
        assert re.search(rf"^(│ )?{source['id']}  ?(│ )?/", listed, re.MULTILINE)


def test_a_long_name_in_a_bar_keeps_its_end(monkeypatch):
    screen = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    monkeypatch.setattr(console, "notes", screen)
    with console.bar("getting a-model-of-which-the-name-is-long-Q4_0") as progress:
        progress(1, 2)
    assert "-long-Q4_0" in screen.file.getvalue()
    assert "50%" in screen.file.getvalue()
