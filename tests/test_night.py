"""A run of the service: folders are read again, the model is trained on, and `status` tells it in three lines."""

import json
import random

import pytest

from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.versions import versions
from tests.data.test_leaks import say
from tests.tiny import write_llama


@pytest.fixture
def folder(ready, run, tmp_path):
    """A folder of three notes that was added, in a home whose trainings are short."""
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("[train]\n", "[train]\nsteps = 4\n").replace("# steps =", "# "))
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(3):
        (notes / f"{number}.txt").write_text(say(random.Random(number), 80))
    run("data", "add", notes)
    return notes


def words(home):
    kept = corpus(Home(home), Home(home).settings())
    return {each["path"].rsplit("/", 1)[-1]: each["documents"] for each in kept.sources()}


def lines(shown):
    found = shown.splitlines()
    first = next(number for number, line in enumerate(found) if line.startswith("night"))
    return [line[10:] for line in found[first : first + 3]]


def test_what_became_of_the_notes_is_read_trained_on_and_told(folder, ready, run):
    (folder / "0.txt").unlink()
    (folder / "1.txt").write_text((folder / "1.txt").read_text() + " and so it went on until the evening")
    (folder / "new.txt").write_text(say(random.Random(9), 80))
    run("service", "run")
    assert words(ready).keys() == {"notes.txt", "1.txt", "2.txt", "new.txt"}
    read, trained, left = lines(run("status").output)
    assert read.endswith("2 folders read again: 2 documents new; files: 1 changed, 1 gone")
    assert trained.startswith("4 steps trained: validation loss")
    assert "version 1 is used from now on" in trained
    assert left == "nothing was left"
    assert versions(Home(ready).adapters) == [1]
    assert json.loads(run("status", "--json").stdout)["night"]["trained"] == trained


def test_a_night_without_new_text_trains_nothing_once_all_was_read(folder, ready, run):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("steps = 4\n", "passes = 1\n"))
    run("service", "run")
    made = versions(Home(ready).adapters)
    assert made
    run("service", "run")
    assert lines(run("status").output)[1:] == ["nothing was trained: there is nothing new to learn from", "nothing was left"]
    assert versions(Home(ready).adapters) == made
    (folder / "0.txt").unlink()
    run("service", "run")
    assert lines(run("status").output)[1].startswith("nothing was trained: there is nothing new")
    (folder / "new.txt").write_text(say(random.Random(9), 80))
    run("service", "run")
    assert "steps trained" in lines(run("status").output)[1]


def test_a_night_after_another_base_was_chosen_says_what_to_do(folder, ready, run, tmp_path):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("steps = 4\n", "passes = 1\n"))
    run("service", "run")
    write_llama(tmp_path / "other.gguf", seed=7)
    run("init", "--force", "--base", tmp_path / "other.gguf")
    run("service", "run", code=1)
    assert "train --fresh" in lines(run("status").output)[2]


def test_a_removed_note_stays_out_until_it_is_added_again(folder, ready, run):
    run("data", "remove", folder / "2.txt")
    run("service", "run")
    assert "2.txt" not in words(ready)
    run("data", "add", folder)
    assert "2.txt" in words(ready)
    (folder / "private").mkdir()
    (folder / "private" / "a.txt").write_text(say(random.Random(5), 80))
    run("data", "add", folder)
    run("data", "remove", folder / "private")
    (folder / "private" / "b.txt").write_text(say(random.Random(6), 80))
    run("service", "run")
    assert words(ready).keys() == {"notes.txt", "0.txt", "1.txt", "2.txt"}
    run("data", "remove", folder)
    run("service", "run")
    assert words(ready).keys() == {"notes.txt"}


def test_a_folder_that_is_not_there_keeps_its_text_and_is_said(folder, ready, run):
    folder.rename(folder.with_name("away"))
    run("service", "run")
    assert "2.txt" in words(ready)
    assert f"{folder} is not there: its text stays" in lines(run("status").output)[2]


def test_new_notes_are_read_in_the_manner_of_their_folder(folder, ready, run):
    run("data", "add", "--local", "--without-secrets", folder)
    (folder / "new.txt").write_text(say(random.Random(9), 80))
    (folder / "wifi.txt").write_text("password: hunter2hunter2 is what the guests type")
    run("service", "run")
    kept = corpus(Home(ready), Home(ready).settings())
    local = {each["path"].rsplit("/", 1)[-1]: each["local"] for each in kept.sources()}
    assert local == {"notes.txt": 0, "0.txt": 1, "1.txt": 1, "2.txt": 1, "new.txt": 1}


def test_what_ended_a_night_is_told_by_status(folder, ready, run):
    with Home(ready).lock("bench"):
        run("service", "run", code=1)
    read, trained, left = lines(run("status").output)
    assert "read again" in read
    assert trained == "nothing was trained"
    assert "`comigs-edge bench` already runs in this home" in left
