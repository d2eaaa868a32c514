"""What the help of every command has: units for its values, an example, `--quiet`; and boxes only where there is room."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

from comigs_edge.commands.examples import EXAMPLES

ROOM = 80  # columns below which boxes would cut the names of options
NAMES = 14  # columns of them, below which the names of options stand in lines of their own


def complete_help(command: Any, shared: list[Any], *words: str) -> None:
    """Completes the help of the command that `words` name and of all below it; `shared` are options that each gets."""
    columns = shutil.get_terminal_size().columns
    for path, each in [((), command)] if not words else walk(command, words):
        if path:
            own = {param.name for param in each.params}
            each.params += [copy.copy(option) for option in shared if option.name not in own]
        name_values(each)
        _name_help(each)
        _show_examples(each, EXAMPLES.get(" ".join(path), ()), is_boxed=columns >= ROOM)
        if columns < ROOM:
            _unbox(each, columns)


def walk(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The command and all below it, each with the words that name it."""
    yield words, command
    for name, each in getattr(command, "commands", {}).items():
        yield from walk(each, (*words, name))


def name_values(command: Any) -> None:
    """Names the values of its options and arguments."""
    for each in command.params:
        _name_value(each)


def _name_value(param: Any) -> None:
    """What stands for its value is the option's name or its choices, where nothing else is said, and not a type's name."""
    if getattr(param, "is_flag", False):
        param.metavar = ""
    elif param.metavar is None:
        kind = getattr(param, "type", None) or getattr(param, "type_descriptor", None)  # typer's own since 0.29
        choices = "|".join(str(getattr(each, "value", each)) for each in getattr(kind, "choices", None) or ())
        param.metavar = choices or str(param.name).upper()
    if param.param_type_name == "argument":
        usage = param.metavar if param.required else f"[{param.metavar}]"
        param.get_usage_pieces = lambda _: [usage]
        param.display_type_rich = lambda ctx: ""


def _name_help(command: Any) -> None:
    make = command.get_help_option

    def without_type(context: Any) -> Any:
        option = make(context)
        option.metavar = ""
        return option

    command.get_help_option = without_type


def _show_examples(command: Any, examples: tuple[str, ...], is_boxed: bool) -> None:
    if examples:
        # Boxes make a line of each paragraph; click rewraps one without \b.
        command.epilog = "\n\n".join(("Examples:", *examples)) if is_boxed else "\n".join(("\b", "Examples:", *examples))


def _unbox(command: Any, columns: int) -> None:
    """Plain help, in which nothing is cut."""
    formatter = command.context_class.formatter_class

    def write_dl(self: Any, rows: Any, col_max: int = NAMES, col_spacing: int = 2) -> None:
        formatter.write_dl(self, rows, NAMES, col_spacing)

    narrow = type("Narrow", (formatter,), {"write_dl": write_dl})
    command.rich_markup_mode = None
    command.context_class = type("Context", (command.context_class,), {"formatter_class": narrow})
    command.context_settings = {**command.context_settings, "terminal_width": columns}
