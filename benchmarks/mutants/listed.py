"""The list of mutants, in the text files beside this one.

    @ comigs_edge/nn/routing.py tests/nn/test_routing.py       the file, and the tests that should notice, as pytest takes them

    - share = (routing.weights > 0).float()                    the text, which stands in the file once
    + share = (routing.weights >= 0).float()                   what is put in its place
    ? tests/nn/test_routing.py::test_other                     where others than the section's tests should notice it
    = Why no test can notice it.

Lines of a longer text follow each other, each behind its sign; `#` opens a comment.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
LISTS = ("training", "nn", "data", "fleet", "rest", "coordinator")  # the most telling ones first


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A fault in a file of the source."""

    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]  # arguments of pytest
    reason: str  # why it survives; empty: it should not

    @property
    def key(self) -> str:
        """Names it in a record."""
        return f"{self.file}: {self.text} -> {self.replacement}"

    def put_into(self, source: str) -> str:
        """The source with the fault; raises `ValueError` where it does not fit."""
        if (count := source.count(self.text)) != 1:
            raise ValueError(f"{self.file} has {count} times {self.text!r} and not once: mend the list of mutants")
        changed = source.replace(self.text, self.replacement)
        compile(changed, self.file, "exec")
        return changed

    def digest(self, root: Path) -> str:
        """SHA-256 of what its outcome depends on most: its file, and those of its tests."""
        names = (self.file, *(test.partition("::")[0] for test in self.tests))
        data = b"\0".join((root / name).read_bytes() for name in names if (root / name).is_file())
        return hashlib.sha256(" ".join(self.tests).encode() + data).hexdigest()


def read_mutants() -> list[Mutant]:
    """All mutants, list by list."""
    return [mutant for name in LISTS for mutant in _read(FOLDER / f"{name}.txt")]


def _read(path: Path) -> Iterator[Mutant]:
    file, tests = "", ()
    for part in path.read_text().split("\n\n"):
        lines: dict[str, list[str]] = {sign: [] for sign in "@-+?=#"}
        for line in part.strip("\n").splitlines():
            lines[line[0]].append(line[2:])
        for head in lines["@"]:
            file, *own = shlex.split(head)
            tests = tuple(own)
        if lines["-"]:
            yield Mutant(
                file=file, text="\n".join(lines["-"]), replacement="\n".join(lines["+"]),
                tests=tuple(shlex.split(" ".join(lines["?"]))) or tests, reason=" ".join(lines["="]),
            )  # fmt: skip
