"""`comigs-edge chat`: talk with the personal model, or with the base."""

from __future__ import annotations

import fcntl
import re
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from comigs_edge.commands.console import bar, notes, out, warn
from comigs_edge.data.decode import decode
from comigs_edge.data.document import Unreadable
from comigs_edge.errors import EXPECTED, ComigsError, sentence
from comigs_edge.home import folder as homes
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from coordinator.protocol.text import printable, readable, well_formed
from profiles.detect import detect
from profiles.watch import OtherLoad

if TYPE_CHECKING:
    from comigs_edge.export.merged import Exported
    from comigs_edge.inference.chat import Chat

HELP = (
    '/exit ends, /clear forgets the conversation, /system TEXT sets the system prompt, Ctrl-C stops an answer; """ begins and '
    "ends a message of several lines"
)
QUOTES = '"""'
NO_MESSAGE = "there is no message to answer; give one: comigs-edge chat --prompt TEXT"


def chat(
    base: Annotated[bool, typer.Option("--base", help="Talk with the base model instead of yours.")] = False,
    prompt: Annotated[
        Optional[str],
        typer.Option(metavar="TEXT", help="Answer this once and end; for scripts. - reads standard input, as a pipe alone does."),
    ] = None,
    file: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Text that is put below the prompt; - reads standard input.")
    ] = None,
    system: Annotated[Optional[str], typer.Option(metavar="TEXT", help="System prompt, in place of config.toml's.")] = None,
    temperature: Annotated[
        Optional[float], typer.Option(min=0.0, help="Randomness of the answers; 0 = always the likeliest token.")
    ] = None,
    seed: Annotated[Optional[int], typer.Option(min=0, help="The same seed gives the same answers.")] = None,
    lines: Annotated[
        Optional[list[str]],
        typer.Option(
            "--plan", metavar="NAME=VALUE", help="Fixes threads, mmap, cache, batch or gpu_layers; may be given several times."
        ),
    ] = None,
) -> None:
    """Talk with your model. It is exported first if it has been trained since."""
    from comigs_edge.home.versions import versions

    home, load = homes.locate(), OtherLoad()
    settings = home.settings()
    message = _message(prompt, file)
    version = max(versions(home.adapters), default=0)  # before it is loaded: a newer one may come meanwhile
    personal = None if base else _personal(home, settings)
    with notes.status("loading"):
        from comigs_edge.data.tokenizer import Tokenizer
        from comigs_edge.inference.chat import Chat
        from comigs_edge.inference.sampling import choose_sampling
        from comigs_edge.planning import plan as planning

        options, tokenizer = settings.chat, Tokenizer(home.base_file, settings.model.thinking)
        size = personal.size if personal else settings.base.size
        plan = planning.chat_plan(
            settings, home.base_file, profile=settings.device(), device=detect(), size=size, busy=load.read() or 0,
            flags=planning.parse(lines or [], planning.CHAT_LINES), model=personal.path if personal else None,
        )  # fmt: skip
        session = Chat(
            personal.path if personal else home.base_file, personal.adapters if personal else (),
            tokenizer, options.system if system is None else system, plan.context, plan.threads,
            choose_sampling(
                tokenizer.metadata, temperature=options.temperature if temperature is None else temperature, top_p=options.top_p,
                repeat_penalty=options.repeat_penalty,
            ),
            options.max_tokens, seed, plan.mmap, plan.cache, plan.batch, plan.gpu_layers,
        )  # fmt: skip
    if plan.context < options.context:
        notes.print(f"context: {plan.context} tokens; {plan.reasons['context']}", style="dim", soft_wrap=True)
    if message is not None:
        _say(session, message)
    else:
        _converse(session, home, settings if personal else None, version)


def _message(prompt: str | None, file: Path | None) -> str | None:
    """What is to be answered once; None where a person types. Raises `ComigsError` where there is not a word."""
    if prompt is None and file is None and _is_typed():
        return None
    from_input = prompt == "-" or str(file) == "-" or (prompt is None and file is None)
    if not from_input and prompt is not None and file is None and _is_unread():
        warn("standard input is not read beside --prompt; to put it below the prompt: --file -")
    parts = [prompt if prompt and prompt != "-" else "", sys.stdin.read() if from_input else ""]
    if file is not None and str(file) != "-":
        parts.append(_text(file.expanduser()))
    if any("\0" in part for part in parts):
        raise ComigsError("standard input is binary data; give text")
    message = well_formed("\n\n".join(part.strip("\n") for part in parts if part.strip()))
    if not message:
        raise ComigsError(NO_MESSAGE)
    return message


def _text(file: Path) -> str:
    try:
        return decode(file.read_bytes())[0]
    except Unreadable as error:
        raise ComigsError(f"{file} cannot be read: {error}; name a file with text") from error


def _is_typed() -> bool:
    return sys.stdin.isatty()


def _is_unread() -> bool:
    """Whether a pipe or a file with something in it is standard input."""
    with suppress(OSError, ValueError):
        return not _is_typed() and any(fcntl.ioctl(sys.stdin, termios.FIONREAD, bytes(4)))
    return False


def _personal(home: Home, settings: Config) -> Exported:
    from comigs_edge.export import folder as models

    storage = settings.storage()
    exported = models.find_current(home, settings, storage)
    if exported is None:
        with bar("exporting your model") as progress:
            exported = models.export_newest(home, settings, storage, None, progress)
    return exported


def _swap_if_newer(session: Chat, home: Home, settings: Config, version: int) -> int:
    """Changes to the newest adapters if they are newer than `version`; returns their version."""
    from comigs_edge.home.versions import versions

    newest = max(versions(home.adapters), default=version)
    if newest != version:
        try:
            personal = _personal(home, settings)
            session.swap(personal.path, personal.adapters)
            out.print(f"your model was trained since: continuing with version {newest}", style="dim")
        except EXPECTED as error:
            out.print(f"version {newest} cannot be used, continuing with the one before: {sentence(error)}", style="dim")
    return newest


def _converse(session: Chat, home: Home, settings: Config | None, version: int) -> None:
    """Talks until the person leaves; `settings` are None for the base, which nothing makes newer."""
    out.print(f"{printable(str(session.model))}\n{HELP}", style="dim", soft_wrap=True)
    _enable_line_editing()
    while True:
        try:
            text = _read_message()
        except EOFError:
            out.print()
            return
        except KeyboardInterrupt:
            out.print(f"\n{HELP}", style="dim")
            continue
        command, _, rest = text.partition(" ")
        if text in ("/exit", "/quit", "/bye"):
            return
        if text == "/clear":
            session.clear()
        elif command == "/system":
            session.set_system(rest)
            out.print("a new conversation with this system prompt", style="dim")
        elif re.fullmatch("/[a-z]*", command):  # a path has more in it than one word
            out.print(HELP, style="dim", soft_wrap=True)
        elif text:
            if settings:
                version = _swap_if_newer(session, home, settings, version)
            try:
                _say(session, text)
            except KeyboardInterrupt:
                typer.echo(" [stopped]")
            except EXPECTED as error:
                typer.secho(f"error: {readable(sentence(error))}", fg="red", err=True)


def _read_message() -> str:
    """What a person typed: a line, what they pasted, or all lines between two marks of three quotes."""
    text = input("\n> ").strip()
    if text.startswith(QUOTES):
        text = text.removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            text += "\n" + input("... ")
        text = text.rstrip().removesuffix(QUOTES).strip()
    return well_formed(text)


def _say(session: Chat, text: str) -> None:
    """Prints the answer as it comes; raises `ComigsError` where none comes to its end."""
    shown = readable if sys.stdout.isatty() else str  # a program gets the very characters
    try:
        for piece in session.answer(text):
            typer.echo(shown(piece), nl=False)
    except RuntimeError as error:  # of llama.cpp
        typer.echo()
        raise ComigsError(f"llama.cpp could not answer ({error}); end other programs, or lower context in config.toml") from error
    typer.echo()


def _enable_line_editing() -> None:
    """Cursor keys and a history for `input`; and what is pasted comes as one message."""
    with suppress(ImportError):
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")
