"""The command line: imports the file of `commands/` that a command needs, and shows errors as one line.

torch and llama.cpp are imported inside the commands that need them, so `--help` answers at once.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import typer
from typer.core import TyperGroup

from comigs_edge import __version__
from comigs_edge.commands.console import drop_output, mend_streams, set_quiet, show_error
from comigs_edge.commands.help import complete_help, name_values
from comigs_edge.commands.table import Loaded, outline
from comigs_edge.errors import EXPECTED, sentence

QUIET = "No bars, no progress, no hints; results, warnings and errors stay."
BUSY = 0.5  # processes that want to run, mean of the last minute, before this one


class Commands(TyperGroup):
    """Imports the command that is asked for, and turns every error meant for the user into a line on stderr and an exit code."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        shared = [_below(each) for each in self.params if each.name in ("quiet", "home", "json")]
        self.commands: Any = Loaded(lambda command, name: complete_help(command, shared, name))
        self._is_outlined = False
        complete_help(self, shared)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the list."""
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, or what the list of commands shows of it."""
        return outline(cmd_name) if self._is_outlined and cmd_name in self.commands else super().get_command(ctx, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Shows the help, with options that typer adds late."""
        name_values(self)
        with self._outlined():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """What the word may become."""
        with self._outlined():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _outlined(self) -> Iterator[None]:
        self._is_outlined = True
        try:
            yield
        finally:
            self._is_outlined = False

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # where a command has nothing to say of its own
            typer.echo("\nstopped by Ctrl-C", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            drop_output()
            raise typer.Exit(1) from None
        except EXPECTED as error:
            show_error(sentence(error))
            raise typer.Exit(getattr(error, "exit_code", 1)) from error


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    help="A small language model becomes yours, on your own device, from your own text.",
)  # fmt: skip


def _below(option: Any) -> Any:
    """An option of the program as its commands have it: one word may stand before or behind the name of the command."""
    option = copy.copy(option)
    option.expose_value, option.hidden = False, option.name != "quiet"
    return option


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"comigs-edge {__version__}")
        raise typer.Exit


def _be_quiet(context: typer.Context, value: bool) -> bool:
    if value or context.parent is None:  # it may stand before the command, and after it
        set_quiet(value)
    return value


def _use_home(context: typer.Context, value: Path | None) -> Path | None:
    if value is not None:
        os.environ["COMIGS_EDGE_HOME"] = str(value)
    return value


def _pass_json(context: typer.Context, value: bool) -> bool:
    """Before the name of a command it is for that command."""
    if value:
        below = getattr(context.command, "commands", None)
        if below is None:
            raise typer.BadParameter(f"{context.info_name} prints no JSON; leave --json out")
        context.default_map = {name: {"json": True} for name in below}
    return value


@app.callback()
def callback(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
    quiet: bool = typer.Option(False, "--quiet", "-q", callback=_be_quiet, is_eager=True, help=QUIET),
    home: Optional[Path] = typer.Option(
        None,
        "--home",
        metavar="FOLDER",
        callback=_use_home,
        is_eager=True,
        help="The home; default: COMIGS_EDGE_HOME, or the system's folder.",
    ),
    json: bool = typer.Option(False, "--json", hidden=True, callback=_pass_json),
) -> None:
    """A small language model becomes yours, on your own device, from your own text."""
    os.umask(0o077)  # what is written is for the owner alone


def main() -> None:
    """The entry point of `comigs-edge`."""
    # Threads that wait for each other by spinning take the processor from each other as soon as another program is busy: with
    # one busy neighbour on two cores a training step took 71 s, and 15 s where they sleep. On quiet cores sleeping costs a
    # fifth, and spinning for a moment nothing. libgomp reads this when it is loaded.
    if os.getloadavg()[0] > BUSY:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    mend_streams()
    app()
