"""`data add` as a person meets it: what it asks, says and leaves out."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from comigs_edge.data.corpus import SPLITS, Corpus
from comigs_edge.home.folder import Home
from tests.tiny import some_text

CHAT = "31.12.23, 22:15 - Bo: Is the shed painted?\n31.12.23, 22:16 - Ada: Two coats.\n"


@pytest.fixture
def ready(run, home, tiny_path):
    run("init", "--base", tiny_path)
    return home


def stored(home):
    corpus = Corpus(Home(home).documents_file)
    return sorted(document.to_json() for split in SPLITS for document in corpus.documents(split))


def in_a_terminal(arguments, typed):
    """What a command shows on a terminal of its own, where `typed` is typed, and its exit code."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "comigs_edge", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "TERM": "dumb"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        os.write(ours, typed)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    return shown.decode(), process.returncode


def test_on_a_terminal_the_owner_is_asked_once_and_remembered(ready, run, tmp_path):
    (tmp_path / "chat.txt").write_text(CHAT)
    (tmp_path / "more.txt").write_text(CHAT.replace("shed", "fence"))
    shown, code = in_a_terminal(["data", "add", tmp_path / "chat.txt"], b"ada\n")
    assert code == 0, shown
    assert "There are conversations of Bo, Ada." in shown
    assert stored(ready) == ['{"messages": [["user", "Is the shed painted?"], ["assistant", "Two coats."]]}']
    assert "learned as your own messages: those of ada" in run("data", "add", tmp_path / "more.txt").stdout
    assert len(stored(ready)) == 2


def test_without_a_terminal_the_names_and_the_command_are_said(ready, run, tmp_path):
    (tmp_path / "a chat.txt").write_text(CHAT + CHAT.replace("Bo:", "\x1b[2JEve:"))
    error = run("data", "add", tmp_path / "a chat.txt", code=1).stderr
    assert "Ada, Bo, \\x1b[2JEve" in error
    assert f"comigs-edge data add --me Ada '{tmp_path}/a chat.txt'" in " ".join(error.split())
    assert stored(ready) == []
    run("data", "add", "--me", "Ada", tmp_path / "a chat.txt")
    assert '["assistant", "Two coats."]' in stored(ready)[0]


def test_a_name_that_was_wrong_is_forgotten_when_the_same_talk_has_another(ready, run, tmp_path):
    (tmp_path / "chat.txt").write_text(CHAT + CHAT.replace("Ada:", "Cy:"))
    run("data", "add", "--me", "Dee", "--me", "Bo", tmp_path / "chat.txt")
    run("data", "add", "--me", "Ada", tmp_path / "chat.txt")
    (tmp_path / "more.txt").write_text(CHAT.replace("shed", "fence"))
    assert "learned as your own messages: those of Dee and Ada" in run("data", "add", tmp_path / "more.txt").stdout
    assert '{"messages": [["user", "Is the fence painted?"], ["assistant", "Two coats."]]}' in stored(ready)


@pytest.mark.parametrize("written", ["~\u202fAda Lo", "Ada\u00a0Lo", "ADA LO"])
def test_a_name_is_found_however_its_spaces_are_written(ready, run, tmp_path, written):
    (tmp_path / "chat.txt").write_text(CHAT.replace("Ada", written))
    run("data", "add", "--me", "Ada Lo", tmp_path / "chat.txt")
    assert stored(ready) == ['{"messages": [["user", "Is the shed painted?"], ["assistant", "Two coats."]]}']


def test_a_telephone_number_is_found_with_any_hyphen(ready, run, tmp_path):
    (tmp_path / "chat.txt").write_text(CHAT.replace("Ada", "+1 555\u2011010\u20110199"))
    run("data", "add", "--me", "+1 555-010-0199", tmp_path / "chat.txt")
    assert '["assistant", "Two coats."]' in stored(ready)[0]


def test_an_empty_name_reads_conversations_as_text(ready, run, tmp_path):
    (tmp_path / "chat.txt").write_text(CHAT)
    run("data", "add", "--me", "", tmp_path / "chat.txt")
    assert stored(ready) == ['{"text": "Bo: Is the shed painted?\\nAda: Two coats."}']


def test_everything_that_was_left_out_or_read_otherwise_is_said(ready, run, tmp_path):
    folder = tmp_path / "notes"
    for name, content in {
        "good.md": b"good", "old.txt": "Schöne Grüße aus Köln".encode("cp1252"), "zeros.txt": b"\0\0",
        "odd.jsonl": b'{"text": "fine"}\n{"body": 1, "id": 2}\n{"body": 3, "id": 4}\n',
        "a.png": b"x", "b.png": b"x", "node_modules/x.md": b"x", ".git/y.md": b"y",
        "conversations.json": b'[{"chat_messages": [{"sender": "human", "text": "Hi"}, {"sender": "assistant", "text": "Yo"}]}]',
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    result = run("data", "add", folder)
    for said in (
        "zeros.txt was skipped: binary data",
        "left out 2 times, first in odd.jsonl, line 2: no known shape with the keys body, id",
        'a line is read that has {"text": ...}',
    ):
        assert said in result.stderr
    for said in (
        "4 documents added from 4 files",
        "1 unreadable files, 2 files of other kinds",
        "of other kinds: 2 .png",
        "passed over: 1 .git, 1 node_modules",
        "read as Windows-1252: old.txt",
        "conversations.json: the chat tool's answers are learned; your own messages with --me user",
    ):
        assert said in result.stdout


def test_where_nothing_could_be_read_the_exit_code_is_1(ready, run, tmp_path):
    (tmp_path / "zeros.txt").write_bytes(b"\0")
    assert "zeros.txt: binary data" in run("data", "add", tmp_path / "zeros.txt", code=1).stderr


def test_a_learned_file_that_is_gone_is_named_with_what_holds_its_text(ready, run, tmp_path):
    notes = tmp_path / "text" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text(some_text())
    run("data", "add", notes.parent)
    run("train", "--steps", 4, "--plan", "batch=4", "--plan", "context=64")
    notes.with_name("other.txt").write_text(some_text()[::-1])
    notes.unlink()
    said = run("data", "add", notes.parent).stdout
    assert "1 gone" in said
    assert "removed text was learned by adapters 0001" in said
    assert "--learned" in said


@pytest.mark.parametrize("is_there", [True, False])
def test_the_text_of_a_folder_that_is_empty_or_gone_stays_and_is_forgotten_by_its_name(ready, run, tmp_path, is_there):
    folder = tmp_path / "my notes"
    folder.mkdir()
    (tmp_path / "other.txt").write_text("something else")
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(some_text(3, seed=ord(name[0])))
    run("data", "add", folder, tmp_path / "other.txt")
    before = stored(ready)
    for path in folder.iterdir():
        path.unlink()
    if not is_there:
        folder.rmdir()
    error = run("data", "add", folder, code=1).stderr
    assert ("no .txt" if is_there else "does not exist") in error
    command = f"comigs-edge data remove '{folder}'"
    assert f"the text of 2 files that were added from there before stays; to forget it: {command}" in " ".join(error.split())
    assert stored(ready) == before
    assert "b.txt was removed" in run("data", "remove", folder).stdout
    assert stored(ready) == ['{"text": "something else"}']
    assert "no file was added from" in run("data", "remove", folder, code=1).stderr
    assert "--learned" not in run("data", "add", folder, code=1).stderr


def test_what_is_left_out_is_said_by_every_command_that_shows_the_text(ready, run, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "Is it painted?"}]}\n{"text": "fine"}\n')
    run("data", "add", tmp_path / "a.jsonl")
    for command in (("status",), ("data", "list")):
        assert "left out: 1 chats without an answer to learn from" in run(*command).stdout


TALKS = {
    "line of a group": "2024.03.15 Friday\n22:15 Bo Is it dry?\n22:16 Ada Yes\n22:17 Ada Bye\n",
    "irc": "[22:15] <Bo> Is it dry?\n[22:16] <Ada> Yes\n[22:17] <Ada> Bye\n",
    "discord": "Bo — 15.03.2024 22:15\nIs it dry?\nAda — 15.03.2024 22:16\nYes\nAda — 15.03.2024 22:17\nBye\n",
}


@pytest.mark.parametrize("talk", TALKS)
def test_a_talk_in_an_unknown_form_is_said_to_be_read_as_text(ready, run, tmp_path, talk):
    (tmp_path / "talk.txt").write_text(TALKS[talk])
    (tmp_path / "chat.txt").write_text(CHAT)
    (tmp_path / "note.txt").write_text("At 10:15 Ada painted the shed.\n")
    said = "--me found no conversation in talk.txt: the form is unknown, and all of it is learned as plain text"
    assert said in run("data", "add", "--me", "Ada", tmp_path / "talk.txt").stderr
    assert said in run("data", "add", "--me", "ada", tmp_path).stderr
    assert "--me" not in run("data", "add", "--me", "Ada", tmp_path / "chat.txt").stderr
    assert "--me found no conversation\n" in run("data", "add", "--me", "Ada", tmp_path / "note.txt").stderr
    assert "--me" not in run("data", "add", "--me", "", tmp_path / "talk.txt").stderr


def test_every_reason_is_in_the_json_and_the_screen_says_so(ready, run, tmp_path):
    lines = [json.dumps({f"key {number}": number}) for number in range(12) for _ in range(12 - number)]
    (tmp_path / "odd.jsonl").write_text("\n".join([*lines, json.dumps({"text": some_text()})]))
    for number in range(7):
        os.mkfifo(tmp_path / f"{number}.txt")
    shown = run("data", "add", tmp_path / "odd.jsonl", *sorted(tmp_path.glob("*.txt")))
    assert "times for 7 other reasons; data add --json names all" in shown.stderr
    assert "2 more files were skipped: 2 " in shown.stderr
    table = json.loads(run("data", "add", "--json", tmp_path / "odd.jsonl", *sorted(tmp_path.glob("*.txt"))).stdout)
    assert [(each["count"], each["reason"].split("the keys ")[1]) for each in table["left_out"]] == [
        (12 - number, f"key {number}") for number in range(12)
    ]
    assert table["left_out"][1]["first"] == "odd.jsonl, line 13"
    assert [Path(each["file"]).name for each in table["skipped"]] == [f"{number}.txt" for number in range(7)]
    assert (table["files"], table["duplicates"]) == (1, sum(size["documents"] for size in table["splits"].values()))
