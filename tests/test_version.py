"""One version, wherever it is asked for."""

import importlib
import sys
from pathlib import Path

import comigs_edge

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_the_package_has_the_version_that_both_programs_say():
    table = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert "version" not in table["project"]
    module, _, name = table["tool"]["setuptools"]["dynamic"]["version"]["attr"].rpartition(".")
    assert getattr(importlib.import_module(module), name) == comigs_edge.__version__
