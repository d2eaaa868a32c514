"""What holds for every unit file: systemd's own check where it is installed, and its parts by Python's parser."""

import configparser
import os
import re
import shutil
import subprocess

import pytest

ANALYZE = shutil.which("systemd-analyze")


def parsed(text):
    """Section -> key -> value; a key that occurs twice is an error."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",), strict=True)
    parser.optionxform = str
    parser.read_string(text)
    return {name: dict(parser[name]) for name in parser.sections()}


def verify(folder, names, *flags):
    """systemd has nothing to say about these units."""
    if ANALYZE is None:
        pytest.skip("systemd-analyze is not installed")
    found = subprocess.run(
        [ANALYZE, "verify", *flags, *(str(folder / name) for name in names)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
    )  # fmt: skip
    said = [line for line in found.stderr.splitlines() if any(name in line for name in names)]
    assert said == [], said
    assert found.returncode == 0, found.stderr


def stand_in(folder, monkeypatch, code=0):
    """A systemctl and a loginctl that note what they are told."""
    log = folder / "told"
    for name in ("systemctl", "loginctl"):
        file = folder / name
        file.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\nexit {code}\n')
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return lambda: log.read_text().splitlines() if log.exists() else []


def exposure(folder, name, text):
    """systemd's own score of a system unit: 0 is the best, 10 the worst."""
    if ANALYZE is None:
        pytest.skip("systemd-analyze is not installed")
    (folder / name).write_text(text)
    found = subprocess.run(
        [ANALYZE, "security", "--offline=yes", "--no-pager", str(folder / name)], capture_output=True, text=True, timeout=60
    )
    score = re.search(r"exposure level for \S+: ([0-9.]+)", found.stdout)
    if score is None:
        pytest.skip(f"this systemd-analyze cannot tell: {found.stderr}")
    return float(score[1])
