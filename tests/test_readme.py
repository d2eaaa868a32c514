"""What the README tells people to type exists."""

import re
from pathlib import Path

import pytest

from coordinator.__main__ import main as coordinator_main

README = Path(__file__).parent.parent / "README.md"


def test_every_command_and_option_in_the_readme_exists(run):
    found = re.findall(r"^(?:\$ )?comigs-edge ([a-z]+)(.*)$", README.read_text(), flags=re.M)
    assert len(found) >= 7
    for name, rest in found:
        words = [name, *(rest.split()[:1] if name == "data" else [])]
        text = run(*words, "--help").stdout
        for option in re.findall(r"--[a-z-]+", rest.split("#")[0]):
            assert option in text, (name, option)


def test_every_command_and_option_of_the_coordinator_in_the_readme_exists(capsys):
    found = re.findall(r"^(?:\$ )?comigs-coordinator ([a-z]+)(.*)$", README.read_text(), flags=re.M)
    assert len(found) >= 4
    for name, rest in found:
        with pytest.raises(SystemExit):
            coordinator_main([name, "--help"])
        text = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", rest.split("#")[0]):
            assert option in text, (name, option)


def test_the_readme_names_the_two_commands():
    text = README.read_text()
    assert "make demo" in text
    assert "make test" in text
