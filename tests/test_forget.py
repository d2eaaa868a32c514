"""`forget`: a file goes with what was learned from it, after it was said what that costs."""

import json
import random

import pytest

from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.versions import read_manifest, versions
from comigs_edge.inference.history import History
from tests.data.test_leaks import say

NEW = "letter.txt"


@pytest.fixture
def trained(run, ready, tmp_path):
    """Version 1 has not seen a letter that version 2 has learned."""
    run("train", "--steps", "4", "--plan", "zero_expert=false")
    (tmp_path / NEW).write_text(say(random.Random(4), 900))
    run("data", "add", tmp_path / NEW)
    run("train", "--steps", "4", "--plan", "zero_expert=false")
    home = Home(ready)
    assert [read_manifest(home.adapters, version)["learned"] for version in versions(home.adapters)] == [[1], [1, 2]]
    return home


def test_the_model_goes_back_to_a_version_from_before_the_file(trained, run, tmp_path):
    shown = run("forget", "--yes", tmp_path / NEW).output
    assert "the model goes back to version 0001" in shown
    assert "what it learned since from other text is lost" in shown
    assert versions(trained.adapters) == [1]
    assert not corpus(trained, trained.settings()).inside(tmp_path / NEW)
    assert (tmp_path / NEW).exists()


def test_without_a_version_from_before_the_command_to_begin_anew_is_said_and_not_run(trained, run):
    shown = run("forget", "--yes", "1").output
    assert "no version from before it is kept" in shown
    assert versions(trained.adapters) == []
    assert "comigs-edge train --fresh (4 steps" in shown


def test_without_an_answer_nothing_is_forgotten(trained, run):
    shown = run("forget", "2", code=1).output
    assert "nothing was forgotten" in shown
    assert "the model goes back to version 0001" in shown
    assert versions(trained.adapters) == [1, 2]


def test_a_number_that_no_file_has_is_said(ready, run):
    assert "there is no file number 9" in run("forget", "--yes", "9", code=1).output


def test_in_a_fleet_it_says_what_cannot_be_called_back(ready, run, tmp_path):
    (ready / "fleet").mkdir()
    assert "cannot be called back" in run("forget", "1", code=1).output
    (tmp_path / NEW).write_text(say(random.Random(4), 900))
    run("data", "add", "--local", tmp_path / NEW)
    shown = run("forget", "2", code=1).output
    assert "it is local" in shown
    assert "cannot be called back" not in shown


def add(run, *arguments):
    return " ".join(run("data", "add", *arguments).output.split())


def words(home):
    return sorted(each["path"].rsplit("/", 1)[-1] for each in corpus(home, home.settings()).sources())


@pytest.fixture
def letters(ready, run, tmp_path):
    """A folder with three letters, of which one was forgotten."""
    folder = tmp_path / "letters"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(say(random.Random(number), 90))
    run("data", "add", folder)
    run("forget", "--yes", folder / "1.txt")
    return Home(ready), folder


REST = ["0.txt", "2.txt", "notes.txt"]


def test_a_forgotten_file_stays_out_when_its_folder_is_added_or_read_at_night(letters, run):
    home, folder = letters
    for named in ([folder], [folder / "1.txt"], [*folder.iterdir()]):
        said = add(run, *named)
        assert "1 forgotten document left out" in said
        assert f"comigs-edge data add --forgotten {' '.join(map(str, named))}" in said
        assert words(home) == REST
    (home.config_file).write_text(home.config_file.read_text().replace("# steps = 200", "steps = 2"))
    run("service", "run")
    assert words(home) == REST


def test_a_copy_of_it_or_the_file_under_another_name_stays_out_too(letters, run):
    home, folder = letters
    (folder / "1.txt").rename(folder / "moved.txt")
    (folder / "copy.txt").write_text((folder / "moved.txt").read_text())
    assert "2 forgotten documents left out" in add(run, folder)
    assert words(home) == REST
    (home.config_file).write_text(home.config_file.read_text().replace("# steps = 200", "steps = 2"))
    assert "2 forgotten documents left out" in run("service", "run").output
    assert words(home) == REST


def test_an_edited_version_in_its_place_stays_out(letters, run):
    home, folder = letters
    (folder / "1.txt").write_text(say(random.Random(70), 90))
    assert "1 forgotten document left out" in add(run, folder)
    assert words(home) == REST


def test_what_was_forgotten_comes_back_on_demand_and_can_be_forgotten_again(letters, run):
    home, folder = letters
    assert "forgotten" not in add(run, "--forgotten", folder / "1.txt").split("left out:")[1]
    assert words(home) == ["0.txt", "1.txt", "2.txt", "notes.txt"]
    assert "1 forgotten document" not in add(run, folder)
    run("forget", "--yes", folder / "1.txt")
    assert "1 forgotten document left out" in add(run, folder)


def test_of_what_was_forgotten_no_text_is_kept(letters):
    home, folder = letters
    words_of_it = (folder / "1.txt").read_bytes()
    kept = home.documents_file.read_bytes()
    assert (folder / "2.txt").read_bytes()[:60] in kept
    assert not any(words_of_it[start : start + 30] in kept for start in range(0, len(words_of_it) - 30, 10))


def test_a_forgotten_chat_in_a_file_of_chats_stays_out_of_another_file(ready, run, tmp_path):
    chats = [[{"role": "user", "content": f"how is {n}?"}, {"role": "assistant", "content": f"{n} is {n} well"}] for n in "abc"]
    for name, kept in (("old", chats[:2]), ("new", chats)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in kept))
    run("data", "add", tmp_path / "old.jsonl")
    run("forget", "--yes", tmp_path / "old.jsonl")
    said = add(run, tmp_path / "new.jsonl")
    assert "1 documents added" in said
    assert "2 forgotten documents left out" in said


def test_a_document_that_another_file_has_is_named_and_stays(ready, run, tmp_path):
    for name in ("here.txt", "there.txt"):
        (tmp_path / name).write_text(say(random.Random(4), 90))
    run("data", "add", tmp_path / "here.txt", tmp_path / "there.txt")
    said = run("forget", "--yes", tmp_path / "here.txt").output
    assert f"{tmp_path / 'there.txt'} has 1 document of that as well" in said
    assert "forgotten" not in add(run, tmp_path / "there.txt").split("left out:")[1]
    run("forget", "--yes", tmp_path / "there.txt")
    assert "1 forgotten document left out" in add(run, tmp_path / "there.txt")


def test_answers_that_are_marked_after_the_chats_were_forgotten_are_learned(ready, run):
    history = History(Home(ready).chats_file)

    def mark(question, answer):
        chat, asked = history.ask(None, "", question)
        history.mark(history.answer(chat, asked, answer, "mine"), "good")

    mark("how is the hen?", "she is well and lays an egg")
    run("chats", "learn", "on")
    run("data", "add", "--chats")
    run("forget", "--yes", Home(ready).chats_file)
    assert "1 forgotten document left out" in add(run, "--chats")
    mark("and the goat?", "it stands on the roof again")
    said = add(run, "--chats")
    assert "1 documents added" in said
    assert "1 forgotten document left out" in said
