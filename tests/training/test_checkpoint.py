"""Checkpoints: two generations, each checked."""

import subprocess
import sys

import numpy as np

from comigs_edge import files
from comigs_edge.training import checkpoint
from tests.tiny import some_text


def write(folder, value):
    checkpoint.save(folder, {"a": np.full(5, value, np.float32)}, {"step": value})


def test_the_newest_of_two_generations_is_loaded(tmp_path):
    for value in (1, 2, 4, 3):
        write(tmp_path, value)
    assert len(list(tmp_path.iterdir())) == 2
    arrays, progress, warnings = checkpoint.load(tmp_path)
    assert (arrays["a"].tolist(), progress, warnings) == ([3.0] * 5, {"step": 3}, [])
    assert [int(path.name[11:19]) for path in sorted(tmp_path.iterdir())] == [3, 4]


def test_a_corrupt_newest_falls_back_to_the_older_with_a_warning(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    _, progress, warnings = checkpoint.load(tmp_path)
    assert progress == {"step": 1}
    assert len(warnings) == 1
    assert "checkpoint-00000002 is damaged" in warnings[0]


def test_without_arrays_the_same_is_found(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    max(tmp_path.iterdir()).write_bytes(b"damaged")
    found = checkpoint.load(tmp_path, with_arrays=False)
    assert found == checkpoint.load(tmp_path)._replace(arrays={})


def test_status_and_a_training_read_their_state_once(ready, run, monkeypatch, tmp_path):
    for seed, name in enumerate(("more", "gone"), 5):
        (tmp_path / f"{name}.txt").write_text(some_text(seed=seed))
        run("data", "add", tmp_path / f"{name}.txt")
    run("train", "--steps", 2, "--plan", "zero_expert=false")
    run("data", "remove", tmp_path / "gone.txt")
    read, sha256_file = [], files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path, *rest: read.append(path.name[:10]) or sha256_file(path, *rest))
    assert "text that was removed was learned by adapters 0001, " in run("status").stdout
    assert read.count("checkpoint") == 1
    read.clear()
    run("train", "--steps", 2, "--plan", "zero_expert=false")
    assert read.count("checkpoint") == 1


def test_nothing_saved_is_none(tmp_path):
    assert checkpoint.load(tmp_path) is None


DISK_FULL = """
import subprocess, sys
from pathlib import Path
import numpy as np
from comigs_edge.training import checkpoint
from comigs_edge.errors import ComigsError
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", sys.argv[1]], check=True)
folder = Path(sys.argv[1])
checkpoint.save(folder, {"a": np.full(100_000, 1, np.float32)}, {"step": 1})
try:
    checkpoint.save(folder, {"a": np.full(1_000_000, 2, np.float32)}, {"step": 2})
except ComigsError as error:
    print(error)
arrays, progress, warnings = checkpoint.load(folder)
print(progress, warnings, float(arrays["a"].sum()), len(list(folder.iterdir())))
"""


def test_a_full_disk_leaves_the_old_state_intact(tmp_path):
    """A real full file system of 2 MB, in a mount namespace of its own."""
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", DISK_FULL, str(tmp_path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert "No space left on device" in lines[0]
    assert "what was there is unchanged" in lines[0]
    assert lines[1] == "{'step': 1} [] 100000.0 1"
