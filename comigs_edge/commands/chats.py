"""`comigs-edge chats`: the conversations that this device keeps."""

from __future__ import annotations

import shlex
import sys
from enum import Enum
from typing import Annotated, Any, Optional

import typer

from comigs_edge.commands import completion
from comigs_edge.commands.console import counted, fact, local_time, next_command, notes, out, print_json, show_table
from comigs_edge.commands.number import number
from comigs_edge.commands.settings import settings_of
from comigs_edge.data.corpus import Corpus
from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home.folder import Home
from comigs_edge.inference.history import History, Kept
from coordinator.protocol.text import readable

app = typer.Typer(no_args_is_help=True, help="The conversations that this device keeps; they never leave it.")
NONE = "no chat is kept here yet; begin one with: comigs-edge chat"
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_TITLE = 60  # characters of a chat's first words


class Switch(str, Enum):
    """What is turned on or off."""

    on = "on"
    off = "off"


def _open() -> tuple[Home, History]:
    home = homes.locate()
    settings_of(home)  # raises where there is no home
    return home, History(home.chats_file)


@app.command("list")
def list_(json: JSON = False) -> None:
    """Show the chats, the last one at the end."""
    _, history = _open()
    chats = history.chats()
    if json:
        print_json({"keep": history.setting("keep") is not False, "learn": bool(history.setting("learn")), "chats": chats})
    elif not chats:
        out.print(NONE)
    else:
        rows = [
            (each["id"], local_time(each["changed"]), each["messages"], _marks(each), _shorten(each["first"])) for each in chats
        ]
        show_table(("id", "last message", "messages", "marks", "begins"), rows, long="begins")
        next_command("comigs-edge chat -c")


@app.command("show")
def show(
    chat: Annotated[
        Optional[int],
        typer.Argument(
            metavar="ID", parser=number, autocompletion=completion.chats, help="Of `chats list`; without it, the last one."
        ),
    ] = None,
    json: JSON = False,
) -> None:
    """Print a chat."""
    _, history = _open()
    number = history.last() if chat is None else chat
    if number is None:
        raise ComigsError(NONE)
    system, messages = history.system(number), history.messages(number)
    if json:
        print_json({"id": number, "system": system, "messages": [each._asdict() for each in messages]})
        return
    if system:
        fact("system: ", system)
    for each in messages:
        _print(each)


@app.command("delete")
def delete(
    chats: Annotated[
        Optional[list[int]],
        typer.Argument(metavar="ID...", parser=number, autocompletion=completion.chats, help="Of `chats list`."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Delete every chat.")] = False,
) -> None:
    """Delete chats for good. Text that was added from them stays until it is removed."""
    if bool(chats) == all_:
        raise typer.BadParameter("give the ID of a chat, or --all")
    home, history = _open()
    numbers = list(dict.fromkeys(chats or (each["id"] for each in history.chats())))
    history.delete(*numbers)
    out.print(f"deleted: {counted(len(numbers), 'chat')}")
    _say_learned(home)


@app.command("on")
def on() -> None:
    """Keep conversations from now on, as it is in a new home."""
    _keep(True)


@app.command("off")
def off() -> None:
    """Keep no conversation from now on; those that are kept stay."""
    _keep(False)


def _keep(value: bool) -> None:
    _, history = _open()
    history.set("keep", value)
    out.print("conversations are kept from now on" if value else "conversations are not kept from now on (chat --keep: that one)")


@app.command("learn")
def learn(switch: Annotated[Optional[Switch], typer.Argument(help="Without it: how it is.", show_default=False)] = None) -> None:
    """Agree, or no longer, to answers marked as good or edited becoming training text by `data add --chats`."""
    home, history = _open()
    if switch is not None:
        history.set("learn", switch is Switch.on)
    if history.setting("learn"):
        out.print("answers marked as good or edited may become training text")
        next_command("comigs-edge data add --chats")
    else:
        out.print("nothing is learned from chats")
        _say_learned(home)


@app.command("path")
def path() -> None:
    """Print where the chats are kept: one SQLite file."""
    typer.echo(readable(str(homes.locate().chats_file)))


def agree(history: History) -> None:
    """Asks once whether marked answers may become training text; raises `ComigsError` unless they may."""
    agreed = history.setting("learn")
    if agreed is None and sys.stdin is not None and sys.stdin.isatty():
        notes.print(
            "Answers that you marked as good or edited become training text of your own model, with the questions before them, "
            "on this device. It can be taken back: comigs-edge chats learn off",
            soft_wrap=True,
        )
        agreed = typer.confirm("Learn from them?", err=True)
        history.set("learn", agreed)
    if not agreed:
        raise ComigsError("learning from chats is not agreed to; agree with: comigs-edge chats learn on")


def _say_learned(home: Home) -> None:
    """That text from chats is still there, and how it goes."""
    if Corpus(home.documents_file).inside(home.chats_file):
        command = f"comigs-edge data remove {shlex.quote(str(home.chats_file))}"
        out.print(f"text that was added from chats before stays; to forget it: {command}", soft_wrap=True)


def _print(message: Kept) -> None:
    if message.role == "user":
        out.print(f"\n> {message.content}", style="bold", soft_wrap=True)
    else:
        out.print(message.content, soft_wrap=True)
        if message.mark:
            out.print(f"({message.mark})", style="dim")


def _marks(chat: dict[str, Any]) -> str:
    return ", ".join(f"{chat[mark]} {mark}" for mark in ("good", "edited", "bad") if chat[mark])


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TITLE else f"{text[: _TITLE - 1]}…"
