"""In which order files reach the disk: what a power cut leaves is the old content or the new, on every machine."""

import os
import stat
import time
from pathlib import Path

import pytest

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.home import versions


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the system from here on: which file is synced, by its inode, and what becomes what."""
    seen, fsync = [], os.fsync

    def watch_sync(descriptor):
        seen.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def watch(move):
        def moved(path, target):
            seen.append(("move", path.stat().st_ino))
            return move(path, target)

        return moved

    monkeypatch.setattr(os, "fsync", watch_sync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, watch(getattr(Path, name)))
    return seen


def test_a_file_is_synced_before_it_takes_its_place_and_its_folder_after(tmp_path, calls):
    files.write_atomic(tmp_path / "file", b"new")
    file, folder = (path.stat().st_ino for path in (tmp_path / "file", tmp_path))
    assert calls == [("sync", file), ("move", file), ("sync", folder)]


def test_pieces_that_are_written_into_a_file_are_on_the_disk_when_it_returns(tmp_path, calls):
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("r+b") as file:
        files.write_at(file, [(2, b"ab"), (8, b"c")])
        assert (tmp_path / "file").read_bytes() == b"01ab4567c9"
        assert calls == [("sync", os.fstat(file.fileno()).st_ino)]


def test_a_version_of_the_adapters_is_whole_on_the_disk_before_it_has_its_name(tmp_path, calls, make_adapters):
    adapters = make_adapters()
    versions.save(tmp_path, adapters.arrays(), adapters.layout, "ab" * 32, {})
    folder = tmp_path / "0001"
    last = calls.index(("move", folder.stat().st_ino))
    assert {("sync", path.stat().st_ino) for path in folder.iterdir()} <= set(calls[:last])
    assert calls[last + 1 :] == [("sync", tmp_path.stat().st_ino)]


def test_an_error_in_the_middle_leaves_what_was_there_and_nothing_else(tmp_path):
    (tmp_path / "file").write_bytes(b"old")

    def fail():
        with files.atomic_writer(tmp_path / "file") as file:
            file.write(b"half")
            raise OSError("the disk is gone")

    with pytest.raises(ComigsError, match="what was there is unchanged"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_what_is_made_is_the_owners_alone(tmp_path):
    files.write_atomic(tmp_path / "a" / "b" / "file", b"mine")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/file")]
    assert modes == [0o700, 0o700, 0o600]


def test_where_no_lock_is_held_only_old_remains_of_a_kill_are_removed(tmp_path):
    for name, age in ((".new", 0), (".old", 100)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    files.remove_temporaries(tmp_path, older_than_seconds=50)
    assert [path.name for path in tmp_path.iterdir()] == [".new"]
