"""What the commands share for talking to a person: consoles, progress bars, JSON, sizes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from coordinator.protocol.text import printable

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)  # progress and warnings: not part of a command's result


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; call the result with what is done and what there is in all."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=notes, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_json(value: Any) -> None:
    """One JSON object on standard output, and nothing else."""
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


def warn(text: str) -> None:
    """A warning, on standard error; the text may be somebody else's."""
    notes.print(Text.assemble(("warning:", "yellow"), f" {printable(text)}"), soft_wrap=True)


def next_command(command: str) -> None:
    """The last line of a command: what to type next."""
    out.print(f"\nnext: [bold]{command}[/]", soft_wrap=True)


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
