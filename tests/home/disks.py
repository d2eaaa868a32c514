"""Small disks of their own for a home, which tests fill."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import warm

needs_mount = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root can mount a disk here")

# Runs a command that fills the disk after one expert step, and makes room again after another (0: never).
FILLING = """
import sys
from pathlib import Path
from comigs_edge import cli
from comigs_edge.commands.train_screen import TrainScreen
from tests.home.disks import fill
disk, (full, free, left) = Path(sys.argv[1]), map(int, sys.argv[2:5])
show_step = TrainScreen.show_step

def show_and_fill(self, event, tokens):
    if event.expert_steps == full and not (disk / "filler").exists():
        fill(disk, left)
    if event.expert_steps == free:
        (disk / "filler").unlink(missing_ok=True)
    show_step(self, event, tokens)

TrainScreen.show_step = show_and_fill
sys.argv[1:] = sys.argv[5:]
cli.main()
"""


@contextlib.contextmanager
def small_disk(folder, megabytes):
    """A tmpfs at the folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk, left=0):
    """Nothing is left but so many bytes."""
    with open(Path(disk) / "filler", "ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
        file.truncate(os.fstat(file.fileno()).st_size - left)


def comigs(home, *arguments, filling=None):
    """Runs a command in a process; `filling`: after which expert step the disk of `home` is full, after which it is
    not, and what is left until then.
    """
    program = ["-m", "comigs_edge"] if filling is None else ["-c", FILLING, str(home.parent), *map(str, filling)]
    environment = os.environ | {"COMIGS_EDGE_HOME": str(home)}
    result = warm.run([*program, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert "Traceback" not in result.stderr, result.stderr
    return result
