"""Large files that were touched: a base that is another one now, an export that is damaged."""

import os
import shutil
import subprocess
import sys

import pytest

from comigs_edge.home.folder import Home
from comigs_edge.home.versions import versions
from tests.home.test_closed_homes import closed, needs_mount
from tests.tiny import write_llama

USES_THE_BASE = [
    ["status"], ["train"], ["train", "--resume"], ["chat", "--base", "--prompt", "the hen"], ["chat", "--prompt", "the hen"],
    ["export"], ["evaluate"], ["serve", "--port", "0"], ["models", "use", "1"], ["explain", "the hen"], ["plan"], ["bench"],
    ["sync"], ["report"], ["home", "export", "packed.tar"], ["init"],
]  # fmt: skip


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A base that is a file of the person's own, and another model of the same size."""
    monkeypatch.chdir(tmp_path)
    base, other = write_llama(tmp_path / "mine.gguf"), write_llama(tmp_path / "other.gguf", seed=5)
    assert base.stat().st_size == other.stat().st_size
    assert base.read_bytes() != other.read_bytes()
    return base, other


@pytest.fixture
def tiny_path(mine):
    return mine[0]


def by_renaming(base, other):
    other.rename(base)


def in_place(base, other):
    with base.open("r+b") as file:
        file.write(other.read_bytes())


def with_the_old_time(base, other):
    before = base.stat()
    in_place(base, other)
    os.utime(base, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_a_link(base, other):
    base.unlink()
    base.symlink_to(other)


def through_another_name(base, other):
    os.link(base, base.with_name("second.gguf"))
    in_place(base.with_name("second.gguf"), other)


@pytest.mark.parametrize("replace", [by_renaming, in_place, with_the_old_time, by_a_link, through_another_name])
def test_another_base_of_the_same_size_is_refused_with_what_to_do(ready, run, mine, replace):
    replace(*mine)
    shown = " ".join(run("train", code=1).output.split())
    assert "has another content than at init (the same size and another SHA-256)" in shown
    assert "bring that file back, or take another base with: comigs-edge init --force --base FILE.gguf" in shown


def test_every_command_that_uses_the_base_refuses_another_one(ready, run, mine):
    run("train", "--steps", "2")
    by_renaming(*mine)
    for command in USES_THE_BASE:
        assert "has another content than at init" in run(*command, code=1).output, command
    assert versions(Home(ready).adapters) == [1]


def test_the_new_base_is_taken_when_asked_for_and_the_old_models_are_not_used_with_it(ready, run, mine):
    run("train", "--steps", "2")
    run("export")
    by_renaming(*mine)
    assert "it is used again after" in run("init", "--force", "--base", mine[0]).output
    for command in (["chat", "--prompt", "the hen"], ["export"], ["models", "use", "1"]):
        assert "trained on another base" in run(*command, code=1).output
    assert run("chat", "--base", "--prompt", "the hen", "--max-tokens", "4").exit_code == 0


def by_touching(base):
    os.utime(base, ns=(1, 1))


def by_copying(base):
    shutil.copyfile(base, base.with_name("copy"))
    base.with_name("copy").rename(base)


def by_moving_it_behind_a_link(base):
    moved = base.rename(base.with_name("moved"))
    base.symlink_to(moved)


@pytest.mark.parametrize("touch", [by_touching, by_copying, by_moving_it_behind_a_link])
def test_a_base_that_was_touched_and_holds_the_same_is_read_once_and_used(ready, run, mine, touch):
    seals, said = ready / "state" / "seals.json", run("status").output
    before = seals.read_bytes()
    touch(mine[0])
    assert run("status").output == said
    once = seals.read_bytes()
    assert once != before
    assert run("status").output == said
    assert seals.read_bytes() == once


@pytest.mark.parametrize("left", [None, b"", b'{"base.gguf": {"sha256": 3}}', b"\xff"])
def test_without_sound_seals_the_base_is_read_and_sealed_again(ready, run, mine, left):
    seals = ready / "state" / "seals.json"
    before = seals.read_bytes()
    seals.unlink() if left is None else seals.write_bytes(left)
    run("status")
    assert seals.read_bytes() == before
    seals.unlink()
    by_renaming(*mine)
    assert "has another content" in run("status", code=1).output


@needs_mount
def test_a_home_that_cannot_be_written_uses_a_touched_base_and_refuses_another(ready, mine):
    by_touching(mine[0])
    assert closed(ready, "status").returncode == 0
    by_renaming(*mine)
    assert "has another content" in closed(ready, "status").stderr


def test_a_home_from_another_board_reads_its_base_once(ready, run, tmp_path, monkeypatch):
    run("home", "export", tmp_path / "packed.tar")
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(tmp_path / "board"))
    run("home", "import", tmp_path / "packed.tar")
    with (tmp_path / "board" / "base.gguf").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert "has another content than at init" in run("status", code=1).output


def test_a_packaged_base_that_is_damaged_is_mended_by_the_command_that_is_named(run, home):
    run("init")
    flip(home / "base.gguf")
    said = run("train", code=1).output
    assert "is damaged" in said
    run(*said.split("comigs-edge ")[1].split())
    run("status")


def flip(path):
    """Other bits in the middle of a file, with its size."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        found = file.read(16)
        file.seek(-16, os.SEEK_CUR)
        file.write(bytes(each ^ 0xFF for each in found))


def answer(run):
    return run("chat", "--prompt", "the hen", "--temperature", "0", "--max-tokens", "12")


@pytest.mark.parametrize("ready", ["parallel", "lora"], indirect=True)
def test_an_export_that_was_damaged_is_made_anew_and_said(ready, run):
    run("train", "--steps", "2")
    before = answer(run).stdout
    [model] = (ready / "models").glob("personal-*.gguf")
    content = model.read_bytes()
    for command in (["chat", "--prompt", "the hen", "--max-tokens", "4"], ["evaluate"]):
        flip(model)
        assert f"{model} is no longer what was written there" in run(*command).stderr
        assert model.read_bytes() == content
    flip(model)
    run("export")
    assert model.read_bytes() == content
    again = answer(run)
    assert again.stdout == before
    assert "no longer" not in again.stderr


@pytest.mark.parametrize("ready", ["lora"], indirect=True)
@pytest.mark.parametrize("damaged", ["hot-base", "personal"])
def test_a_damaged_file_of_the_layout_hot_is_made_anew(ready, run, damaged):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace('# layout = "merged"', 'layout = "hot"'))
    run("train", "--steps", "2")
    before = answer(run).stdout
    model = sorted((ready / "models").glob(f"{damaged}*.gguf"))[0]
    content = model.read_bytes()
    flip(model)
    again = answer(run)
    assert f"{model} is no longer what was written there" in again.stderr
    assert again.stdout == before
    assert model.read_bytes() == content


def test_a_later_version_is_not_written_into_a_damaged_export(ready, run):
    run("train", "--steps", "2")
    run("export")
    [model] = (ready / "models").glob("personal-*.gguf")
    flip(model)
    run("train", "--steps", "4")
    run("export")
    newest = sorted((ready / "models").glob("personal-*.gguf"))[-1]
    run("export", "--output", ready / "whole.gguf")
    assert newest.read_bytes() == (ready / "whole.gguf").read_bytes()


def test_an_export_of_an_earlier_version_without_a_seal_is_used(ready, run):
    run("train", "--steps", "2")
    before = answer(run).stdout
    [model] = (ready / "models").glob("personal-*.gguf")
    made = model.stat().st_mtime_ns
    (ready / "state" / "seals.json").unlink()
    again = answer(run)
    assert again.stdout == before
    assert "no longer" not in again.stderr
    assert model.stat().st_mtime_ns == made


def test_a_kill_while_the_seals_are_written_leaves_the_old_or_the_new(ready, run, mine):
    """The second process is killed at its rename; the base is then read once more."""
    by_touching(mine[0])
    code = (
        "import os, pathlib\n"
        "from comigs_edge.home import folder\n"
        "pathlib.Path.replace = lambda path, target: os.kill(os.getpid(), 9)\n"
        "folder.locate().settings()\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    run("status")
