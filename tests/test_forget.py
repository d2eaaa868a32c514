"""`forget`: a file goes with what was learned from it, after it was said what that costs."""

import random

import pytest

from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.versions import read_manifest, versions
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
