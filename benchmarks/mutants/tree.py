"""A copy of the source in which mutants are tried, in a process that has the libraries already."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from benchmarks.mutants.listed import Mutant

LEFT_OUT = (".git", ".venv", "__pycache__", "benchmark-work", "simulations", ".*_cache", ".hypothesis", "*.egg-info")
OUTCOMES = {0: "survived", 1: "killed", 2: "killed"}  # by pytest's exit code; 2: a file of tests could not be imported
LEAST_SECONDS, FACTOR = 60.0, 5.0  # that tests may take: so many times as long as without the mutant
LIBRARIES = (
    "pytest", "hypothesis.extra.numpy",
    "torch", "torch.optim.adamw", "llama_cpp", "gguf", "numpy", "safetensors.numpy", "msgspec", "aiohttp",
    "cryptography.x509", "http_message_signatures", "requests", "jinja2", "typer.testing", "rich.console", "psutil", "filelock",
    "tenacity",
)  # fmt: skip
SOURCE = ("comigs_edge", "coordinator", "profiles", "quantize", "benchmarks", "tests")  # to be imported from the copy alone
UNUSED = ("cacheprovider", "xdist", "schemathesis")  # plugins
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class Broken(Exception):
    """Tests that cannot tell: they fail without a mutant, or do not run."""


class Tree:
    """A copy of the source, in which one mutant at a time lives."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary, self.said = folder / "tree", folder / "temporary", folder / "said"
        self._usual: dict[tuple[str, ...], float] = {}
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
        # Of a mutant nothing is kept as bytecode; what does not change is compiled once.
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(self.folder)], check=True)
        os.environ |= ENVIRONMENT | {"PYTHONPATH": str(self.folder)}
        for name in LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    def run(self, tests: tuple[str, ...], limit: float | None) -> tuple[str, float]:
        """What became of these tests, and the seconds that they took."""
        start, process = time.monotonic(), get_context("fork").Process(target=self._test, args=(tests, limit is not None))
        process.start()
        process.join(limit)
        if process.exitcode is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            return "timeout", time.monotonic() - start
        if process.exitcode not in OUTCOMES:
            raise Broken(f"pytest {' '.join(tests)} cannot run:\n{self.said.read_text()}")
        return OUTCOMES[process.exitcode], time.monotonic() - start

    def _test(self, tests: tuple[str, ...], is_mutant: bool) -> None:
        """In a process of its own, in the copy."""
        import pytest

        os.setsid()
        sys.dont_write_bytecode = is_mutant  # without one, what pytest makes of the tests is kept
        os.chdir(self.folder)
        for name in [name for name in sys.modules if name.partition(".")[0] in SOURCE]:
            del sys.modules[name]
        sys.path[:] = [str(self.folder), *(path for path in sys.path if path not in ("", str(ROOT)))]
        with self.said.open("w") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        options = ["-x", "-q", "--basetemp", str(self.temporary), *(part for name in UNUSED for part in ("-p", f"no:{name}"))]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of hypothesis, which is there already
        os._exit(pytest.main([*options, *tests]))

    def try_mutant(self, mutant: Mutant) -> dict[str, Any]:
        """The outcome of its tests with it; raises `Broken` where they fail without it."""
        path, usual = self.folder / mutant.file, self.usual(mutant.tests)
        source = path.read_text()
        path.write_text(mutant.put_into(source))
        try:
            outcome, seconds = self.run(mutant.tests, max(LEAST_SECONDS, FACTOR * usual))
        finally:
            path.write_text(source)
        return {"outcome": outcome, "seconds": round(seconds, 1), "usual": round(usual, 1), "digest": mutant.digest(ROOT)}

    def usual(self, tests: tuple[str, ...]) -> float:
        """Seconds of these tests without a mutant."""
        if tests not in self._usual:
            outcome, self._usual[tests] = self.run(tests, None)
            if outcome != "survived":
                raise Broken(f"without a mutant these tests fail: {' '.join(tests)}\n{self.said.read_text()[-4000:]}")
        return self._usual[tests]


_tree: Tree  # of a process that tries mutants


def make_tree(folder: Path) -> None:
    """Begins a process that tries mutants, in a folder below this one."""
    global _tree
    _tree = Tree(Path(tempfile.mkdtemp(dir=folder)))


def try_mutant(mutant: Mutant) -> dict[str, Any]:
    """The outcome of a mutant's tests in this process; one that is `broken` has a `reason`."""
    try:
        return _tree.try_mutant(mutant)
    except Broken as error:
        return {"outcome": "broken", "seconds": 0.0, "reason": str(error)}
