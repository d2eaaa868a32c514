"""A home that this user cannot write, or whose disk is full: real mounts, in a mount namespace of their own."""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from comigs_edge.home.folder import Home

SPACE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
PROGRAM = [sys.executable, "-m", "comigs_edge"]
NOBODY = 65534


def in_space(script, *words):
    return subprocess.run([*SPACE, script, *map(str, words)], capture_output=True, text=True, timeout=300)


can_mount = in_space('mount -t tmpfs tmpfs "$0"', "/mnt").returncode == 0
needs_mount = pytest.mark.skipif(not can_mount, reason="no mount namespace may be made here")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def refused(result):
    """The one sentence on standard error."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


def closed(home, *arguments):
    """The command's result on a home whose disk is mounted for reading only."""
    return in_space(READ_ONLY, home, *PROGRAM, *arguments)


def without_last_digits(text):
    """Two runs add floats in other orders where the plan measured other precisions or threads."""
    return re.sub(r"\d+\.\d+(e[-+]\d+)?", lambda number: f"{float(number.group()):.4g}", text)


@needs_mount
def test_what_only_reads_works_on_a_read_only_disk(ready, run):
    run("train", "--steps", 2)
    answer = run("chat", "--prompt", "the hen", "--temperature", 0).stdout
    for command in (["status", "--json"], ["data", "list"], ["plan", "--no-measure"], ["evaluate", "--json"]):
        result = closed(ready, *command)
        assert result.returncode == 0, result.stderr
        there, here = (without_last_digits(text) for text in (result.stdout, run(*command).stdout))
        assert there == here or command[0] == "plan"
    result = closed(ready, "chat", "--prompt", "the hen", "--temperature", "0")
    assert (result.returncode, result.stdout.splitlines()) == (0, answer.splitlines())


@needs_mount
def test_what_must_write_on_a_read_only_disk_names_path_and_reason(ready, run, tmp_path):
    run("train", "--steps", 2)
    text = tmp_path / "text" / "notes.txt"
    commands = (
        ["train"], ["sync"], ["leave"], ["rollback"], ["join", "-"], ["export"], ["data", "add", text], ["data", "remove", "1"],
        ["init", "--force", "--base", ready / "base.gguf"],
    )  # fmt: skip
    for command in commands:
        message = refused(closed(ready, *command))
        assert str(ready) in message
        assert "read-only" in message.lower() or "readonly" in message, message


@needs_mount
def test_doctor_names_a_home_that_cannot_be_written(ready):
    result = closed(ready, "doctor", "--json")
    assert result.returncode == 1
    (finding,) = (each for each in json.loads(result.stdout)["findings"] if each["subject"] == "home")
    assert finding["verdict"] == "bad"
    assert f"{ready} (its disk is read-only)" in finding["text"]


@pytest.fixture
def of_root(ready):
    """A home that everybody may read, outside the folder of the tests, which nobody else may enter."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(ready, folder / "home")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield folder / "home"
    shutil.rmtree(folder)


@needs_root
def test_a_home_that_root_made_is_read_by_a_user_and_refused_with_a_sentence(of_root):
    def as_nobody(*arguments):
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        environment = os.environ | {"COMIGS_EDGE_HOME": str(of_root)}
        return subprocess.run([*user, *PROGRAM, *arguments], capture_output=True, text=True, env=environment)

    if as_nobody("--version").returncode:
        pytest.skip("another user may not run this Python")
    assert as_nobody("status").returncode == 0
    assert "sudo chown" in refused(as_nobody("train"))
    assert f"{of_root} (it is user 0's, and this is user {NOBODY})" in as_nobody("doctor").stdout
    (of_root / "config.toml").chmod(0)
    assert f"{of_root / 'config.toml'} cannot be used (Permission denied)" in refused(as_nobody("status"))
    of_root.chmod(0o700)
    assert "sudo chown" in refused(as_nobody("status"))
    assert "it is user 0's" in as_nobody("doctor").stdout


# FAT, which no kernel of a test machine need have: what it answers, by the calls that meet it ------------------------


def denied(*_, **__):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_disk_without_rights_and_links_holds_a_copy_of_the_base(run, home, tiny_path, tmp_path, monkeypatch):
    for call in ("chmod", "symlink_to"):
        monkeypatch.setattr(Path, call, denied)
    monkeypatch.setattr(os, "fchmod", denied)
    run("init", "--base", tiny_path)
    assert not (home / "base.gguf").is_symlink()
    assert (home / "base.gguf").read_bytes() == tiny_path.read_bytes()
    with Home(home).lock("train"):
        pass


def test_a_disk_without_locks_is_named(ready, run, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert "No locks available" in run("train", code=1).stderr
    assert "that disk has no locks" in run("train", code=1).stderr
