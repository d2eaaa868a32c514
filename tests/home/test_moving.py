"""`home export` and `home import`: a home in one file, for another board."""

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import tarfile
import time

import pytest

from comigs_edge.home import holder, moving
from comigs_edge.home.folder import Home
from comigs_edge.inference.history import History
from tests import warm


def error(result):
    return result.stderr.replace("\n", " ")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def archive(ready, run, tmp_path):
    """A home with a chat, a key and what a training leaves, as its archive."""
    History(ready / "chats.db").ask(None, "", "a stone")
    (ready / "device.key").write_bytes(b"the key")
    (ready / "models").mkdir(exist_ok=True)
    (ready / "state").mkdir(exist_ok=True)
    (ready / "models" / "personal-0001-Q8_0.gguf").write_bytes(b"model")
    for name in ("below-01.bin", "pace.json", "ordinary-a.json", "checkpoint-1"):
        (ready / "state" / name).write_bytes(b"state")
    run("home", "export", tmp_path / "mine.tar")
    return tmp_path / "mine.tar"


@pytest.fixture
def other(tmp_path, monkeypatch):
    """The place of another board's home."""
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(tmp_path / "other"))
    return tmp_path / "other"


def rewrite(archive, change):
    """The archive with other members: `change` gets name and data of each, and returns what is written."""
    with tarfile.open(archive) as tar:
        members = [(entry, tar.extractfile(entry).read()) for entry in tar]
    with tarfile.open(archive, "w") as tar:
        for entry, data in members:
            for changed, text in change(entry, data):
                changed.size = len(text)
                tar.addfile(changed, io.BytesIO(text))


# What moves -----------------------------------------------------------------------------------------------------------


def test_a_trained_home_goes_on_on_the_other_board(ready, run, tmp_path, other, monkeypatch):
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(ready))
    run("train", "--steps", 2)
    run("home", "export", tmp_path / "mine.tar")
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(other))
    assert run("home", "import", tmp_path / "mine.tar").stdout.splitlines()[-1] == "next: comigs-edge chat"
    assert contents(other / "adapters") == contents(ready / "adapters") != {}
    assert run("chat", "--prompt", "a stone", "--max-tokens", 4).stdout.strip()


def test_text_chats_base_and_settings_arrive_as_they_were(ready, run, archive, other):
    run("home", "import", archive)
    before, after = Home(ready), Home(other)
    assert after.config_file.read_bytes() == before.config_file.read_bytes()
    assert after.base_file.read_bytes() == before.base_file.read_bytes()
    assert not after.base_file.is_symlink()
    assert History(after.chats_file).chats() == History(before.chats_file).chats() != []
    dumps = []
    for path in (after.documents_file, before.documents_file):
        with contextlib.closing(sqlite3.connect(path)) as db:
            dumps.append(list(db.iterdump()))
    assert dumps[0] == dumps[1]


def test_everything_in_the_new_home_is_for_its_owner_alone(run, archive, other):
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    run("home", "import", archive)
    assert {stat.S_IMODE(path.stat().st_mode) for path in other.rglob("*") if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in [other, *other.rglob("*")] if path.is_dir()} == {0o700}


def test_an_interrupted_training_goes_on_on_the_other_board(ready, run, tmp_path, other, monkeypatch):
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(ready))
    with warm.Process(["-m", "comigs_edge", "train", "--steps", "100000"], stderr=subprocess.DEVNULL) as training:
        while not ((at := holder.present(Home(ready).holder_file)) and at.progress and at.progress.expert_steps >= 1):
            time.sleep(0.1)
        training.send_signal(signal.SIGTERM)
    run("home", "export", tmp_path / "mine.tar")
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(other))
    assert "next: comigs-edge train --resume" in run("home", "import", tmp_path / "mine.tar").stdout


@pytest.mark.usefixtures("no_ordinary_text")
def test_caches_models_and_logs_stay_behind(archive):
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
    assert names == {
        "base.gguf", "chats.db", "config.toml", "data/documents.db", "state/checkpoint-1", "state/ordinary-a.json",
        moving.MANIFEST,
    }  # fmt: skip


def test_the_devices_key_moves_only_when_asked_for_and_with_a_warning(ready, run, archive, other, monkeypatch):
    with tarfile.open(archive) as tar:
        assert "device.key" not in tar.getnames()
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(ready))
    result = run("home", "export", "--with-key", archive.parent / "key.tar")
    assert "only one of two boards with one key can be in the fleet" in error(result)
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(other))
    assert "comigs-edge leave on the old one" in error(run("home", "import", archive.parent / "key.tar"))
    assert (other / "device.key").read_bytes() == b"the key"


# What is refused ------------------------------------------------------------------------------------------------------


def test_a_home_that_is_there_is_never_written_over(ready, run, archive):
    before = contents(ready)
    assert "already, which stays as it is" in error(run("home", "import", archive, code=1))
    assert contents(ready) == before
    assert "is there already; name another file" in error(run("home", "export", archive, code=1))
    assert "lies in the home itself" in error(run("home", "export", ready / "mine.tar", code=1))


def test_no_home_is_packed_while_a_training_runs(ready, run, tmp_path):
    with Home(ready).lock("train"):
        assert "`comigs-edge train` already runs" in error(run("home", "export", tmp_path / "mine.tar", code=1))
    assert not (tmp_path / "mine.tar").exists()


@pytest.mark.parametrize("kind", ["cut", "changed", "missing", "added", "no end", "empty", "newer", "newer home"])
def test_a_damaged_archive_makes_no_home(run, archive, other, kind):
    def change(entry, data):
        if kind == "changed" and entry.name == "data/documents.db":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if kind == "newer" and entry.name == moving.MANIFEST:
            data = json.dumps(json.loads(data) | {"format": 2}).encode()
        if kind == "newer home" and entry.name == "config.toml":
            data = data.replace(b"format = 1", b"format = 2", 1)
        if kind == "added" and entry.name == "config.toml":
            return [(entry, data), (tarfile.TarInfo("more.txt"), b"x")]
        gone = {"missing": "data/documents.db", "no end": moving.MANIFEST}.get(kind)
        return [] if entry.name == gone else [(entry, data)]

    if kind == "cut":
        archive.write_bytes(archive.read_bytes()[:-30_000])
    elif kind == "empty":
        archive.write_bytes(b"")
    else:
        rewrite(archive, change)
    said = error(run("home", "import", archive, code=1))
    assert ("made by a newer" if kind == "newer" else "is no sound archive of a home") in said
    assert not other.exists()
    assert not list(other.parent.glob(".other*"))


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", ".hidden", "link"])
def test_an_archive_writes_nothing_outside_of_the_home(run, archive, other, name, tmp_path):
    def change(entry, data):
        extra = tarfile.TarInfo(name)
        if name == "link":
            extra.type, extra.linkname = tarfile.SYMTYPE, "/etc/passwd"
        return [(extra, b""), (entry, data)] if entry.name == "config.toml" else [(entry, data)]

    rewrite(archive, change)
    assert "is no sound archive" in error(run("home", "import", archive, code=1))
    assert not other.exists()
    assert not (tmp_path / "evil").exists()


# Kills and full disks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 4])
def test_a_full_disk_leaves_neither_a_home_nor_an_archive(ready, run, archive, other, monkeypatch, piece):
    write, count = os.fsync, iter(range(100))

    def full(descriptor):
        if next(count) == piece:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert "make room on that disk" in error(run("home", "import", archive, code=1))
    assert not other.exists()
    monkeypatch.undo()


def test_too_little_room_is_said_before_anything_is_written(run, archive, other, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    assert "make room, or name another disk" in error(run("home", "import", archive, code=1))
    assert not other.exists()


def test_a_killed_import_is_begun_anew(run, archive, other):
    staging = other.parent / ".other.import"
    (staging / "data").mkdir(parents=True)
    (staging / "config.toml").write_text("half")
    (staging / "stranger").write_text("of an earlier archive")
    run("home", "import", archive)
    assert not staging.exists()
    assert not (other / "stranger").exists()


@pytest.mark.parametrize("action", ["export", "import"])
def test_a_kill_at_any_moment_loses_nothing(ready, run, archive, other, action, monkeypatch):
    before = contents(ready)
    target = archive.parent / "second.tar"
    place = ready if action == "export" else other
    words = ["comigs_edge", "home", action, str(target if action == "export" else archive)]
    code = f"import os, signal, sys; sys.argv = {words!r}; import comigs_edge.home.moving as m; n = [0]\n"
    code += "inner = m._Summed.read\n"
    code += "def read(self, size=65536):\n n[0] += 1\n"
    code += " if n[0] == 9: os.kill(os.getpid(), signal.SIGKILL)\n return inner(self, size)\n"
    code += "m._Summed.read = read; from comigs_edge.cli import main; main()"
    killed = warm.run(["-c", code], env=os.environ | {"COMIGS_EDGE_HOME": str(place)})
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert not other.exists()
    assert {path: data for path, data in contents(ready).items() if path in before and path.parts[0] != "state"} == {
        path: data for path, data in before.items() if path.parts[0] != "state"
    }
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(place))
    run(*words[1:])
