"""The built wheel, in an environment of its own that sees the libraries of this one: it does the main job, and offline."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.tiny import some_text

ROOT = Path(__file__).parent.parent
SOURCES = ("comigs_edge", "coordinator", "profiles", "quantize")
QUICK = "[train]\nbatch = 4\ncontext = 64\nrouter_period = 4\nrouter_steps = 2\nvalidation_rows = 4\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The command of the wheel, installed where nothing of the source's folder is seen."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*SOURCES, "pyproject.toml", "README.md", "LICENSE"):  # setuptools leaves its folders beside the source
        subprocess.run(["cp", "-r", ROOT / name, source / name], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "-w", folder, source], check=True)
    venv.create(folder / "venv", with_pip=False)
    site = folder / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", folder / "venv" / "bin" / "python", "install", *offline, wheel], check=True)
    # The libraries' folder alone: the .pth file of an editable installation there counts for nothing here.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv" / "bin"


@pytest.mark.slow
def test_the_wheel_does_the_main_job(installed, tmp_path, tiny_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "notes.txt").write_text(some_text())

    def run(*words, program="comigs-edge"):
        result = subprocess.run(
            [installed / program, *map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result
        return result.stdout

    where = "import comigs_edge, coordinator; print(comigs_edge.__file__, coordinator.__file__)"
    assert run("-c", where, program="python").count(str(installed.parent)) == 2
    run("init", "--base", tiny_path)
    settings = tmp_path / "home" / "config.toml"
    settings.write_text(settings.read_text().replace("[train]\n", QUICK))
    run("data", "add", "notes.txt")
    assert "trained: validation loss" in run("train", "--steps", 4, "--no-pause", "--plan", "zero_expert=false")
    assert "personal-0001-Q8_0.gguf" in run("export")
    assert run("chat", "--prompt", "a stone", "--max-tokens", 4).strip()
    assert "multilingual" in run("simulate", "--help")
