"""What the commands share for talking to a person: consoles, progress bars, JSON, sizes."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.status import Status
from rich.text import Text

from comigs_edge.errors import ComigsError
from comigs_edge.progress import Progress
from coordinator.protocol.text import printable, readable

LONG = 30  # columns that a path needs in a table
LATE = 2.0  # seconds after which it is shown what is being done
LOGS = 30.0  # seconds between two lines of a log about one thing that lasts


class _Console(Console):
    """Prints text as it is: nothing in it is markup, and nothing in it moves the cursor."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(readable(each) if isinstance(each, str) else each for each in objects), **options)

    def status(self, *arguments: Any, **options: Any) -> Status:
        """What is being done; a terminal that cannot take it away again, and would keep an empty line, shows none."""
        if self.is_dumb_terminal:
            return Console(quiet=True).status(*arguments, **options)
        return super().status(*arguments, **options)


out = _Console(highlight=False, markup=False, emoji=False)
# Progress and warnings: not part of a command's result.
notes = _Console(stderr=True, highlight=False, markup=False, emoji=False)
_warnings = _Console(stderr=True, highlight=False, markup=False, emoji=False)  # where `notes` are silent


def set_quiet(is_quiet: bool) -> None:
    """Whether bars, progress and hints are left out; results, warnings and errors stay."""
    notes.quiet = is_quiet


class _Unbroken:
    """A standard stream whose reader may go away, with a terminal or a pipe: from then on what is written is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError:
            _drop(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _drop(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_unread: set[int] = set()  # numbers of pipes that were dropped


def _drop(stream: Any) -> None:
    if _is_unread_pipe(stream.fileno()):
        _unread.add(stream.fileno())
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())  # where Python, too, writes what is left when it ends
    os.close(nothing)


def drop_output() -> None:
    """Nobody reads standard output any more: what is still to be written goes nowhere."""
    with suppress(OSError, ValueError):
        _drop(sys.stdout)


def has_lost_reader() -> bool:
    """Whether standard output or error was a pipe to a program that has ended; not under nohup, which is to go on."""
    is_lost = bool(_unread) or _is_unread_pipe(1) or _is_unread_pipe(2)
    return is_lost and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def _is_unread_pipe(number: int) -> bool:
    poll = select.poll()
    poll.register(number, 0)
    return stat.S_ISFIFO(os.fstat(number).st_mode) and any(event & select.POLLERR for _, event in poll.poll(0))


def mend_streams() -> None:
    """Closed standard streams are opened on nothing, what an encoding lacks is written as an escape, and errors always can be.

    A file that took the number of a closed stream, the documents for one, would receive what libraries print there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        stream.reconfigure(errors=errors)  # type: ignore[union-attr]
    sys.stderr = _Unbroken(sys.stderr)


@contextmanager
def unbroken_output() -> Iterator[None]:
    """Whatever happens to the terminal or the pipe, nothing that is only said raises an error here."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Unbroken(sys.stdout), _Unbroken(sys.stderr)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = streams


class Bar:
    """A progress bar on the screen."""

    def __init__(self, show: Callable[[int, int], None], stop: Callable[[], None]) -> None:
        self._show, self.stop = show, stop  # `stop` takes it away, where something is to be asked

    def __call__(self, done: int, total: int) -> None:
        """What is done, and what there is in all."""
        self._show(done, total)


def _logger(what: str) -> Callable[[int, int], None]:
    """Shows in a log that something lasts: a line now and then."""
    said = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= LOGS:
            said = time.monotonic()
            notes.print(f"{what}, {100 * done // max(1, total)}%", soft_wrap=True)

    return show


@contextmanager
def bar(what: str) -> Iterator[Bar]:
    """A progress bar while this lasts."""
    if not notes.is_interactive:
        yield Bar(_logger(printable(what)), lambda: None)
        return
    from rich import progress as bars

    what, room = printable(what), notes.width - 16  # columns that spinner, share and time leave
    if cell_len(what) > room:
        what = f"…{what[len(what) - room + 1 :]}"
    columns = [bars.SpinnerColumn(), bars.TextColumn("{task.description}", markup=False)]
    if (width := min(40, room - cell_len(what) - 1)) > 4:
        columns.append(bars.BarColumn(width))
    columns += [bars.TextColumn("{task.percentage:>3.0f}%"), bars.TimeRemainingColumn()]
    with bars.Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield Bar(lambda done, total: progress.update(task, completed=done, total=total), progress.stop)


@contextmanager
def late_bar(what: str) -> Iterator[Progress]:
    """A progress bar once this has lasted for a while."""
    began, shown = time.monotonic(), None
    with ExitStack() as stack:

        def show(done: int, total: int) -> None:
            nonlocal shown
            if shown is None and time.monotonic() - began > LATE:
                shown = stack.enter_context(bar(what))
            if shown is not None:
                shown(done, total)

        yield show


def measuring(is_measured: bool = True) -> AbstractContextManager[Any]:
    """Says that the processor is measured, where it is."""
    return notes.status("measuring the processor") if is_measured else nullcontext()


def print_json(value: Any) -> None:
    """One JSON object on standard output, and nothing else."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    if readable(text) != text or (sys.stdout.encoding or "utf-8").lower() != "utf-8":
        text = json.dumps(value, indent=1).replace("\x7f", "\\u007f")  # the last of ASCII that moves a cursor
    sys.stdout.write(f"{text}\n")


def warn(text: str) -> None:
    """A warning, on standard error; the text may be somebody else's."""
    (_warnings if notes.quiet else notes).print(Text.assemble(("warning:", "yellow"), f" {printable(text)}"), soft_wrap=True)


def show_error(text: str) -> None:
    """What ended a command, on standard error, in a line of its own."""
    _warnings.print(Text(f"error: {readable(text)}", "red"), soft_wrap=True)


def place_for(path: Path | None, is_folder: bool = False) -> Path | None:
    """Where a person wants a file or a folder, refused before anything is done where it cannot be: a slip makes no folder."""
    if path is None:
        return None
    path = path.expanduser().absolute()
    if not path.parent.is_dir():
        raise ComigsError(f"there is no folder {path.parent}; make it with: mkdir -p {shlex.quote(str(path.parent))}")
    if path.is_dir() and not is_folder:
        raise ComigsError(f"{path} is a folder; name a file in it")
    return path


def next_command(command: str, where: str = "") -> None:
    """The last line of a command: what to type next, if not here then `where`."""
    if not notes.quiet:
        out.print(Text.assemble(f"\nnext{where and f', {where}'}: ", (command, "bold")), soft_wrap=True)


def show_table(headers: Sequence[str], rows: Iterable[Sequence[object]], long: str) -> None:
    """A table on standard output; cells may be somebody else's, and are shown whole.

    Those of the column `long` go on in the next line; where the others leave it no room, each row becomes a paragraph.
    """
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widest = [max(map(cell_len, (*name.split(), *column))) for name, *column in zip(headers, *cells, strict=True)]
    place = headers.index(long)
    if sum(widest) - widest[place] + min(widest[place], LONG) + 3 * len(headers) + 1 > out.width:
        for row in cells:
            if len(row) == 2:  # nothing but the long column stands behind the first
                out.print(Text(row[0], "bold"))
                out.print(Padding(Text(row[1]), (0, 0, 0, 3)))
                continue
            out.print(Text("  ".join(row[i] for i in sorted({0, place}) if row[i]), "bold"), soft_wrap=True)
            rest = ", ".join(f"{headers[i]} {cell}" for i, cell in enumerate(row) if cell and i not in (0, place))
            out.print(Padding(Text(rest), (0, 0, 0, 3)))
        return
    from rich.table import Table

    table = Table()
    for name, width in zip(headers, widest, strict=True):
        table.add_column(name, overflow="fold", min_width=None if name == long else width)
    for row in cells:
        table.add_row(*row)
    out.print(table)


def fact(name: str, value: object, width: int = 0, mark: Text | str = "") -> None:
    """A line of a command's result: the name of a thing in bold, and the thing, which may be somebody else's."""
    out.print(Text.assemble(mark, (f"{name:<{width}}", "bold"), readable(str(value))), soft_wrap=True)


def counted(count: int, what: str) -> str:
    """1 update, 2 updates."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def in_minutes(minutes: float) -> str:
    """A time that is an estimate, in words."""
    return "less than a minute" if minutes < 0.5 else f"about {counted(max(1, round(minutes)), 'minute')}"


def local_time(moment: str) -> str:
    """A time in UTC (ISO 8601) as the clock here has it."""
    with suppress(ValueError, OverflowError):
        return f"{datetime.fromisoformat(moment.removesuffix('Z')).replace(tzinfo=timezone.utc).astimezone():%Y-%m-%d %H:%M}"
    return moment


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
