"""Every target runs for a moment; longer by hand, see `fuzzing.py`, and by `make torture`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
TARGETS = sorted(path.stem for path in FOLDER.glob("fuzz_*.py"))


def run(target, folder, *options):
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python or machine")
    command = [sys.executable, str(FOLDER / f"{target}.py"), *options]
    # A corpus of its own: what earlier runs left beside it would all be read, in more memory than a moment may take.
    space = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(command, cwd=folder, env=space, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_a_moment_of_invented_bytes_finds_nothing(target, tmp_path):
    done = run(target, tmp_path, "-runs=2000")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.torture
@pytest.mark.parametrize("target", TARGETS)
def test_minutes_of_invented_bytes_find_nothing(target, tmp_path):
    # The instruments grow by gigabytes in this time: what is tested stays below 100 MB.
    done = run(target, tmp_path, "-max_total_time=300", "-rss_limit_mb=8192")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
