"""A folder is gone through whole: links are followed once, closed folders counted, what programs put there is passed over."""

import os
import socket
import tempfile
import threading
from pathlib import Path

import pytest

from comigs_edge.data import documents
from comigs_edge.data.walk import Walk, files_below


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"text of {name}")


def names(root, walk=None):
    return [str(path.relative_to(root)) for path in files_below(root, walk or Walk())]


def test_links_are_followed_and_no_folder_is_entered_twice(tmp_path):
    root = tmp_path / "vault"
    make(tmp_path, "vault/a/one.md", "elsewhere/two.md", "file.md")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(root / "a")
    (root / "a" / "loop").symlink_to(root)
    (root / "everything").symlink_to("/")
    (root / "three.md").symlink_to(tmp_path / "file.md")
    (root / "gone.md").symlink_to(tmp_path / "nothing")
    (root / "self.md").symlink_to(root / "self.md")
    walk = Walk()
    assert names(root, walk) == ["a/one.md", "linked/two.md", "three.md"]
    assert sorted((path.name, why) for path, why in walk.closed) == [
        ("everything", "a link to a folder above"),
        ("gone.md", "No such file or directory"), ("self.md", "Too many levels of symbolic links"),
    ]  # fmt: skip


def test_what_programs_put_there_is_passed_over_and_counted_by_name(tmp_path):
    make(
        tmp_path, "note.md", "site/node_modules/x/README.md", "b/node_modules/y.md", "venv/a.txt", "own/pyvenv.cfg",
        "own/lib.txt", ".git/a.txt", ".obsidian/b.md", "c/__pycache__/x.txt", ".hidden.md",
    )  # fmt: skip
    walk = Walk()
    assert names(tmp_path, walk) == ["note.md"]
    assert walk.folders == {"node_modules": 2, "venv": 1, "own": 1, ".git": 1, ".obsidian": 1, "__pycache__": 1}


def test_a_pipe_a_socket_and_a_device_never_wait(tmp_path):
    make(tmp_path, "note.md")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.txt"))
        found = []
        paths = [tmp_path, tmp_path / "pipe.txt"]
        reader = threading.Thread(target=lambda: found.append(documents.read(paths)), daemon=True)
        reader.start()
        reader.join(20)
    assert [(path.name, why) for path, why in found[0].skipped] == [
        ("pipe.txt", "no ordinary file"), ("socket.txt", "no ordinary file"), ("pipe.txt", "no ordinary file"),
    ]  # fmt: skip
    assert [path.name for path in found[0].files] == ["note.md"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user to become")
def test_closed_folders_and_files_are_counted():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        root = Path(name)
        make(root, "open/a.md", "closed/b.md", "listed/c.md", "file.md")
        (root / ".loop").symlink_to(root / ".loop")
        modes = (
            (root, 0o755),
            (root / "open", 0o755),
            (root / "open" / "a.md", 0o644),
            (root / "closed", 0),
            (root / "listed", 0o744),
            (root / "file.md", 0),
        )
        for path, mode in modes:
            path.chmod(mode)
        os.seteuid(65534)
        try:
            reading = documents.read([root, root / "closed" / "b.md"])
        finally:
            os.seteuid(0)
    closed = ("b.md", "c.md", "closed", "file.md")
    assert sorted((path.name, why) for path, why in reading.skipped) == [(name, "Permission denied") for name in closed]
    assert [path.name for path in reading.files] == ["a.md"]


def test_a_very_deep_folder_is_gone_through(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(900):  # deeper than Python's own stack would go in a walk that calls itself twice
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("a.md", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert len(files_below(tmp_path, Walk())) == 1


def test_a_file_that_several_links_reach_is_read_once_and_under_its_own_name(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "z.txt").write_text("The shed is green.")
    (tmp_path / "notes" / "a.txt").symlink_to("z.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "notes" / "z.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "b.txt")
    assert list(documents.read([tmp_path / "b.txt", tmp_path / "notes"]).files) == [tmp_path / "notes" / "z.txt"]
    assert list(documents.read([tmp_path / "c.txt", tmp_path / "b.txt"]).files) == [tmp_path / "c.txt"]


def test_two_hard_links_are_two_files(tmp_path):
    (tmp_path / "a.txt").write_text("The shed is green.")
    (tmp_path / "b.txt").hardlink_to(tmp_path / "a.txt")
    assert list(documents.read([tmp_path]).files) == [tmp_path / "a.txt", tmp_path / "b.txt"]
