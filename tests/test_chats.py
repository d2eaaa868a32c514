"""Chats that are kept: gone on with, marked, compared, learned from, and never in the way of a chat."""

import io
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from rich.console import Console

from comigs_edge import llamacpp
from comigs_edge.commands import conversation, message
from comigs_edge.data.document import Document, Message
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.inference.chat import Chat
from comigs_edge.inference.history import History
from comigs_edge.inference.sampling import Sampling
from coordinator.protocol.text import readable
from tests.home.disks import fill, needs_mount, small_disk
from tests.tiny import some_text

PROGRAM = [sys.executable, "-m", "comigs_edge"]
EXACT = ("--temperature", "0", "--repeat-penalty", "1", "--max-tokens", "6")


@pytest.fixture
def talk(ready, run, monkeypatch):
    """Types lines in a chat with the base; returns all that was shown."""

    def typed(*lines, options=()):
        monkeypatch.setattr(message, "is_typed", lambda: True)
        shown = run("chat", "--base", *EXACT, *options, input="\n".join(lines)).output
        monkeypatch.setattr(message, "is_typed", lambda: False)
        return shown

    return typed


@pytest.fixture
def kept(run):
    """The messages of a kept chat, as (role, content, mark)."""

    def messages(*chat):
        shown = json.loads(run("chats", "show", *chat, "--json").stdout)
        return [(each["role"], each["content"], each["mark"]) for each in shown["messages"]]

    return messages


def chats(run):
    return json.loads(run("chats", "list", "--json").stdout)["chats"]


def shell(line, **environment):
    words = ["bash", "-c", line.replace("$C", " ".join(PROGRAM))]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, timeout=120)


def in_terminal(words, react, term="dumb"):
    """Runs a program in a terminal; `react` gets all that was shown, and returns what to type or None."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = term
        os.execv(words[0], words)
    shown, end = b"", time.monotonic() + 90
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                break
        if wanted := react(shown):
            os.write(terminal, wanted)
    os.close(terminal)
    return shown, os.waitpid(pid, 0)[1]


def answer(ready, messages, asked):
    """What the base says to this after those messages, without anything of `chat`'s command."""
    base = ready / "base.gguf"
    session = Chat(base, (), Tokenizer(base), "", 512, 1, Sampling(temperature=0.0, repeat_penalty=1.0), 6)
    session.messages = [Message(role, content) for role, content, _ in messages]
    return "".join(session.answer(asked))


# Kept, and gone on with ---------------------------------------------------------------------------------------------


def test_a_conversation_is_kept_and_a_later_one_goes_on_with_it(ready, run, talk, kept):
    assert "this chat is kept on this device" in talk("the hen", "and the inn?", "/exit")
    before = kept()
    assert [each[:2] for each in before[::2]] == [("user", "the hen"), ("user", "and the inn?")]
    said = run("chat", "--base", *EXACT, "--continue", "--prompt", "a stone").stdout.strip()
    assert said == answer(ready, before, "a stone").strip()
    assert said != answer(ready, [], "a stone").strip()  # the history counts
    assert kept()[4:] == [("user", "a stone", None), ("assistant", said, None)]
    shown = talk("more", options=["-c"])
    assert f"> a stone\n{said}" in shown  # where it stopped
    assert len(kept()) == 8
    assert len(chats(run)) == 1


def test_a_named_chat_goes_on_and_an_unknown_one_is_refused(run, talk, kept):
    talk("one", "/clear", "two", "/system Be kind.", "three")
    assert [each["first"] for each in chats(run)] == ["one", "two", "three"]
    run("chat", "--base", "--chat", "2", "--prompt", "again")
    assert [content for role, content, _ in kept("2") if role == "user"] == ["two", "again"]
    assert json.loads(run("chats", "show", "3", "--json").stdout)["system"] == "Be kind."
    assert "there is no chat number 9; see" in run("chat", "--base", "--chat", "9", "--prompt", "x", code=1).stderr
    assert "begins a new chat" in run("chat", "--base", "-c", "--system", "Hm.", "--prompt", "x", code=2).stderr
    run("chats", "delete", "1", "3")
    assert [each["id"] for each in chats(run)] == [2]
    assert "there is no chat number 3" in run("chats", "delete", "3", code=1).stderr


def test_a_single_prompt_is_kept_only_where_it_is_asked_for(ready, run):
    run("chat", "--base", "--prompt", "the hen")
    assert not (ready / "chats.db").exists()
    assert "there is no chat to go on with yet" in run("chat", "--base", "-c", "--prompt", "first").stderr
    run("chat", "--base", "--keep", "--prompt", "second")
    run("chat", "--base", "-c", "--no-keep", "--prompt", "third")
    assert [each["first"] for each in chats(run)] == ["first", "second"]
    assert chats(run)[1]["messages"] == 2


def test_off_is_remembered_until_on(run, talk):
    run("chats", "off")
    assert "this chat is not kept" in talk("the hen")
    assert "not kept, so an answer has no mark" in talk("the hen", "/good")
    assert chats(run) == []
    talk("kept all the same", options=["--keep"])
    run("chats", "on")
    talk("kept")
    assert [each["first"] for each in chats(run)] == ["kept all the same", "kept"]


def test_chats_are_listed_shown_and_found_by_people_too(ready, run, talk):
    assert "no chat is kept here yet" in run("chats", "list").stdout
    assert "no chat is kept here yet" in run("chats", "show", code=1).stderr
    talk("the \x1b[2J hen", "/good")
    assert re.search(r"│ 1 .* 2 .*1 good.*the \\x1b\[2J hen", run("chats", "list").stdout)
    assert "> the \\x1b[2J hen" in run("chats", "show").stdout
    assert run("chats", "path").stdout == f"{ready / 'chats.db'}\n"
    run("chats", "delete", "--all")
    assert chats(run) == []
    assert run("chats", "delete", code=2)


# What goes wrong ------------------------------------------------------------------------------------------------------


# A chat that is typed, and killed at the third token of the second answer.
KILLED = """
import os, signal, sys
from comigs_edge import cli, llamacpp
from comigs_edge.commands import conversation, message
message.is_typed = lambda: True
generate, answers = llamacpp.llama_cpp.Llama.generate, []

def generate_and_die(self, *arguments, **options):
    answers.append(0)
    for number, token in enumerate(generate(self, *arguments, **options)):
        if len(answers) == 2 and number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield token

llamacpp.llama_cpp.Llama.generate = generate_and_die
cli.main()
"""


def test_a_kill_loses_only_the_answer_that_was_being_written(ready, run, kept):
    words = [sys.executable, "-c", KILLED, "chat", "--base", *EXACT]
    killed = subprocess.run(words, input="the hen\nand the inn?\n", text=True, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    said = answer(ready, [], "the hen").strip()
    assert kept() == [("user", "the hen", None), ("assistant", said, None), ("user", "and the inn?", None)]
    run("chat", "--base", *EXACT, "-c", "--prompt", "a stone")
    assert kept()[3:] == [("user", "a stone", None), ("assistant", answer(ready, kept()[:2], "a stone").strip(), None)]


@pytest.mark.parametrize("how", ["damaged", "newer"])
def test_a_chat_goes_on_without_a_history_that_cannot_be_used(ready, run, talk, how):
    talk("the hen")
    if how == "damaged":
        (ready / "chats.db").write_bytes(b"no database " * 500)
    else:
        with sqlite3.connect(ready / "chats.db") as db:
            db.execute("pragma user_version = 99")
        db.close()
    before = (ready / "chats.db").read_bytes()
    for options in ([], ["-c"], ["--keep"]):
        shown = talk("one", "two", options=options)
        assert shown.count("warning:") == 1
        assert {"damaged": "file is not a database", "newer": "made by a newer comigs-edge"}[how] in shown
        assert answer(ready, [], "one").strip() in shown
    assert (ready / "chats.db").read_bytes() == before
    assert run("chats", "list", code=1).stderr.startswith("error: ")


@needs_mount
def test_a_full_disk_is_said_once_and_the_chat_goes_on(tmp_path, ready, run, talk, monkeypatch):
    with small_disk(tmp_path / "disk", 12) as disk:
        home = disk / "home"
        subprocess.run(["cp", "-rL", ready, home], check=True)
        monkeypatch.setenv("COMIGS_EDGE_HOME", str(home))
        talk("before")
        fill(disk)
        shown = talk("one", "two", "three", options=["-c"])
        assert shown.count("warning:") == 1
        assert "this chat is no longer kept" in shown
        (disk / "filler").unlink()
        talk("after", options=["-c"])
        said = [each["content"] for each in json.loads(run("chats", "show", "--json").stdout)["messages"]]
        assert said[0] == "before"
        assert "after" in said


# Commands of a conversation -------------------------------------------------------------------------------------------


def test_marks_and_an_edit_reach_the_history_and_what_follows(ready, run, talk, kept):
    shown = talk("/good", "/edit", "the hen", "/good", "the inn", "/bad", "a stone", "/edit", "Better said.", "and now?")
    assert shown.count("there is no answer") == 2
    marks = [mark for role, _, mark in kept() if role == "assistant"]
    assert marks == ["good", "bad", "edited", None]
    assert kept()[5][1] == "Better said."
    assert kept()[7][1] == answer(ready, kept()[:6], "and now?").strip()
    assert "marked as good" in shown


def test_an_edit_in_one_line_is_the_answer_also_for_what_follows(ready, run, talk, kept):
    talk("the hen", "/edit  Better said, of course.", "and now?")
    assert kept()[1] == ("assistant", "Better said, of course.", "edited")
    assert kept()[3][1] == answer(ready, kept()[:2], "and now?").strip()


def test_a_command_that_takes_no_text_does_nothing_with_some(talk, kept):
    shown = talk("the hen", "/clear all of it", "/good one", "/exit now", "/quit it", "/stats off", "a stone")
    assert shown.count("takes no text, and nothing was done") == 5
    assert [content for role, content, mark in kept() if role == "user" and mark is None] == ["the hen", "a stone"]
    assert {mark for _, _, mark in kept()} == {None}


def test_the_system_prompt_is_shown_without_losing_the_conversation(talk, kept):
    shown = talk("/system", "/system Be kind.", "the hen", "/system", "a stone")
    assert "there is no system prompt; /system TEXT sets one" in shown
    assert "the system prompt: Be kind." in shown
    assert [content for role, content, _ in kept() if role == "user"] == ["the hen", "a stone"]


def test_the_last_answer_can_be_marked_when_the_chat_goes_on_later(talk, kept):
    talk("the hen")
    talk("/good", options=["-c"])
    assert kept()[1][2] == "good"


def test_an_answer_is_edited_in_the_persons_editor(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("EDITOR", "sed -i -e s/hen/rooster/")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("VISUAL", raising=False)
    assert message.edit("the hen\nand more") == "the rooster\nand more"
    monkeypatch.setenv("EDITOR", "no-such-editor")
    with pytest.raises(Exception, match="EDITOR = no-such-editor could not edit the answer"):
        message.edit("the hen")
    assert not list(tmp_path.glob("answer-*"))


def test_without_an_editor_the_answer_stands_in_the_line_to_be_changed(monkeypatch):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    code = "from comigs_edge.commands import message; print('got', message.edit('the hen'), flush=True)"
    typed = iter([b"\x7f\x7f\x7finn\r"])
    shown, _ = in_terminal(
        [sys.executable, "-c", code], lambda shown: next(typed, None) if b"edit> the hen" in shown else None, "xterm"
    )
    assert b"got the inn\r\n" in shown


@pytest.mark.parametrize("line", ["the hen", "/compare the hen"])
def test_a_model_that_fails_is_said_and_the_conversation_goes_on(talk, monkeypatch, line):
    real, failed = llamacpp.llama_cpp.Llama.generate, []

    def fail_once(self, *arguments, **options):
        if not failed:
            failed.append(0)
            raise RuntimeError("llama_decode returned -3")
        return real(self, *arguments, **options)

    monkeypatch.setattr(llamacpp.llama_cpp.Llama, "generate", fail_once)
    shown = talk(line, "and now?", "/good")
    assert shown.count("llama.cpp could not answer (llama_decode returned -3)") == 1
    assert "marked as good" in shown


def test_an_answer_is_compared_with_the_other_models(ready, run, monkeypatch):
    run("train", "--steps", "2")
    monkeypatch.setattr(message, "is_typed", lambda: True)
    shown = run("chat", *EXACT, input="the hen\n/compare\n/compare the inn\na stone\n/edit a river\n/compare\n/exit").stdout
    monkeypatch.setattr(message, "is_typed", lambda: False)
    messages = json.loads(run("chats", "show", "--json").stdout)["messages"]
    triples = [(each["role"], each["content"], None) for each in messages]
    assert [content for role, content, _ in triples if role == "user"] == ["the hen", "the inn", "a stone"]
    for before, asked in ((0, "the hen"), (2, "the inn")):
        personal, base = triples[before + 1][1], answer(ready, triples[:before], asked).strip()
        assert f"your model: {readable(personal)}\nthe base: {readable(base)}\n" in shown
    assert f"your edit: a river\nthe base: {readable(answer(ready, triples[:4], 'a stone').strip())}\n" in shown


@pytest.mark.parametrize("width", [80, 79])
def test_two_answers_stand_beside_each_other_where_there_is_room(monkeypatch, width):
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, markup=False)
    monkeypatch.setattr(conversation, "out", screen)
    monkeypatch.setattr("comigs_edge.commands.console.out", screen)
    monkeypatch.setenv("TERM", "xterm")
    conversation.show_side_by_side(("your model", "mine [bold]\x1b[2J"), ("the base", "the other\nof two lines"))
    shown = screen.file.getvalue()
    assert "mine [bold]\\x1b[2J" in shown
    assert ("mine" in shown.splitlines()[1] and "the other" in shown.splitlines()[1]) == (width == 80)


def test_without_a_model_of_ones_own_comparing_is_a_sentence(talk):
    shown = talk("/compare", "the hen", "/compare", "still here")
    assert "there is no answer yet" in shown
    assert shown.count("error:") == 2
    assert "train" in shown


def test_a_full_context_is_said_once_and_every_turn_stays_kept(ready, talk, kept):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("# context = 2048", "context = 128"))
    shown = talk(*[f"the hen number {number} and an inn" for number in range(12)], options=["--stats"])
    assert shown.count("its oldest messages are no longer read") == 1
    assert len(kept()) == 24
    assert len(re.findall(r"\d+ tokens, [\d.]+ a second; the first after [\d.]+ s, \d+ of the prompt read", shown)) == 12
    assert "its oldest messages are no longer read" in talk("more", options=["-c"])


# Sampling -------------------------------------------------------------------------------------------------------------


def test_sampling_options_reach_llama_cpp(ready, run, monkeypatch):
    seen, real = [], llamacpp.llama_cpp.Llama.generate
    monkeypatch.setattr(
        llamacpp.llama_cpp.Llama, "generate", lambda self, *a, **options: seen.append(options) or real(self, *a, **options)
    )
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.3}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    run("chat", "--base", "--prompt", "hen", "--max-tokens", "2", *words)
    assert seen[-1] == {"temp": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.3}


def test_an_answer_ends_before_a_text_that_stops_it(ready, run):
    words = ("chat", "--base", *EXACT, "--prompt", "a stone", "--max-tokens")
    whole = run(*words, "60").stdout.rstrip("\n")
    stop = whole[20:23]
    assert run(*words, "60", "--stop", "never there", "--stop", stop).stdout == f"{whole[: whole.index(stop)]}\n"
    assert len(run(*words, "3").stdout) < 20 < len(whole)


# Terminals and pipes --------------------------------------------------------------------------------------------------


def test_a_dumb_terminal_gets_lines_and_no_sequences(ready):
    typed = iter([b"the hen\r", b"/stats\r", b"/help\r", b"/good\r", b"/edit\r", b"Better.\r", b"/nonsense\r", b"\x04"])
    seen = 0

    def react(shown):
        nonlocal seen
        count = len(re.findall(rb"(?:^|\n)(?:>|edit>) ", shown))
        if count > seen:
            seen = count
            return next(typed, None)
        return None

    shown, status = in_terminal([*PROGRAM, "chat", "--base", *EXACT], react)
    assert status == 0
    assert b"\x1b" not in shown, shown
    assert b"marked as good" in shown
    assert b"the answer is changed" in shown


def test_a_piped_chat_goes_on_and_prints_the_answer_alone(ready, run, kept):
    run("chat", "--base", *EXACT, "--keep", "--prompt", "the hen")
    result = shell(f"echo and now | $C chat --base {' '.join(EXACT)} -c --stats")
    assert result.returncode == 0
    assert result.stdout.strip() == kept()[-1][1]
    assert "a second" in result.stderr


# Learning from chats --------------------------------------------------------------------------------------------------


def written(ready, number, good=True):
    """A kept chat whose answer is a text of its own."""
    history = History(ready / "chats.db")
    chat, question = history.ask(None, "", f"question {number}: {some_text(1, 100 + number)[:80]}")
    answered = history.answer(chat, question, some_text(1, 1000 + number)[:300], "base.gguf")
    if good:
        history.mark(answered, "good")
    return chat, answered


def learned(ready):
    """All documents that come from chats."""
    with sqlite3.connect(ready / "data" / "documents.db") as db:
        rows = db.execute(
            "select content, split from document join source on source.id = source where path like '%chats.db'"
        ).fetchall()
    db.close()
    return [(Document.from_json(content).messages, split) for content, split in rows]


def test_marked_answers_become_training_text_once_that_is_agreed_to(ready, run):
    assert "no answer of a kept chat is marked" in run("data", "add", "--chats", code=1).stderr
    for number in range(12):
        written(ready, number)
    unmarked, _ = written(ready, 99, good=False)
    assert "chats learn on" in run("data", "add", "--chats", code=1).stderr
    assert learned(ready) == []
    run("chats", "learn", "on")
    assert "12 documents added from 1 files" in run("data", "add", "--chats").stdout
    assert len(learned(ready)) == 12
    assert {split for _, split in learned(ready)} <= {"training", "validation", "test"}
    listed = json.loads(run("data", "list", "--json").stdout)["files"]
    assert [each["documents"] for each in listed if each["path"].endswith("chats.db")] == [12]
    questions = {messages[0].content for messages, _ in learned(ready)}
    assert not any(question.startswith("question 99") for question in questions)
    assert unmarked == 13


def test_what_a_mark_or_a_deletion_takes_back_is_gone_after_the_next_adding(ready, run):
    kept = [written(ready, number) for number in range(4)]
    run("chats", "learn", "on")
    run("data", "add", "--chats")
    splits = {messages: split for messages, split in learned(ready)}
    History(ready / "chats.db").mark(kept[0][1], "bad")
    assert "text that was added from chats before stays; to forget it" in run("chats", "delete", kept[1][0]).stdout
    run("data", "add", "--chats")
    assert len(learned(ready)) == 2
    assert all(splits[messages] == split for messages, split in learned(ready))  # each keeps its split
    run("chats", "delete", "--all")
    run("data", "add", "--chats")
    assert learned(ready) == []


def test_agreeing_is_taken_back_and_the_text_removed(ready, run):
    written(ready, 1)
    run("chats", "learn", "on")
    run("data", "add", "--chats")
    shown = run("chats", "learn", "off").stdout
    assert "nothing is learned from chats" in shown
    command = re.search(r"comigs-edge (data remove .*)", shown)[1].split()
    assert "not agreed to" in run("data", "add", "--chats", code=1).stderr
    assert len(learned(ready)) == 1
    run(*command)
    assert learned(ready) == []
    assert len(chats(run)) == 1  # the chat itself stays


def test_agreement_is_asked_once_in_a_terminal(ready, run, monkeypatch):
    written(ready, 1)
    asked = iter([b"n\n", b"never\n"])

    def react(shown):
        return next(asked, None) if shown.rstrip().endswith(b"[y/N]:") else None

    shown, status = in_terminal([*PROGRAM, "data", "add", "--chats"], react)
    assert b"Learn from them?" in shown
    assert os.WEXITSTATUS(status) == 1
    shown, status = in_terminal([*PROGRAM, "data", "add", "--chats"], lambda _: None)
    assert b"Learn from them?" not in shown
    assert b"chats learn on" in shown
    assert os.WEXITSTATUS(status) == 1


def test_an_edited_answer_is_learned_as_it_was_edited(ready, run, talk):
    words = "Hens are kept beside the inn for their eggs, said the old man slowly."
    talk("what of the hen?", "/edit", words, "and an inn?", "/bad")
    run("chats", "learn", "on")
    run("data", "add", "--chats")
    assert [messages for messages, _ in learned(ready)] == [(Message("user", "what of the hen?"), Message("assistant", words))]
    run("train", "--steps", "2")
    listed = json.loads(run("data", "list", "--json").stdout)["files"]
    run("data", "remove", *[each["id"] for each in listed if each["path"].endswith("chats.db")])
    assert learned(ready) == []
