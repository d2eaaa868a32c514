"""What README and docs tell people to type: the blocks of commands, and the commands named within sentences."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "SECURITY.md", ROOT / "CHANGELOG.md")
FENCE = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Typed:
    """One command of a block, as words, and the lines that the page says it prints."""

    words: tuple[str, ...]
    printed: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A fenced block of commands; `runs` is false where its fence says `no-run`."""

    page: Path
    line: int
    runs: bool
    commands: tuple[Typed, ...]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page: of a `console` block the lines behind `$ `, of a `sh` block every line."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, "no-run" not in match[2], _commands(match[1], match[3]))
        for match in FENCE.finditer(text)
        if match[1] in ("console", "sh")
    ]


def _commands(language: str, text: str) -> tuple[Typed, ...]:
    commands: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if language == "sh" or line.startswith("$ "):
            commands.append((line.removeprefix("$ "), []))
        else:
            commands[-1][1].append(line)
    split = [(tuple(shlex.split(line, comments=True)), tuple(printed)) for line, printed in commands]
    return tuple(Typed(words, printed) for words, printed in split if words)


def named(page: Path) -> list[list[str]]:
    """Commands within sentences and tables, as words; ones with `...` are sentences of the program and left out."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    spans = re.findall(r"`((?:comigs-edge|comigs-coordinator|make) [a-z-][^`]*)`", text)
    return [shlex.split(span) for span in spans if "..." not in span]
