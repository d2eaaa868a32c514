"""`comigs-edge chat`: talk with the personal model, or with the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from comigs_edge import home as homes

if TYPE_CHECKING:
    from pathlib import Path

    from comigs_edge.chat import Chat
    from comigs_edge.config import Config
    from comigs_edge.home import Home

HELP = "/exit ends, /clear forgets the conversation, /system TEXT sets the system prompt, Ctrl-C stops an answer"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("chat")(chat)


def chat(
    base: Annotated[bool, typer.Option("--base", help="Talk with the base model instead of yours.")] = False,
    prompt: Annotated[
        Optional[str], typer.Option(metavar="TEXT", help="Answer this once and end; for scripts.")
    ] = None,
    system: Annotated[
        Optional[str], typer.Option(metavar="TEXT", help="System prompt, in place of config.toml's.")
    ] = None,
    temperature: Annotated[
        Optional[float], typer.Option(min=0.0, help="Randomness of the answers; 0 = always the likeliest token.")
    ] = None,
    seed: Annotated[Optional[int], typer.Option(min=0, help="The same seed gives the same answers.")] = None,
) -> None:
    """Talk with your model. It is exported first if it has been trained since."""
    from comigs_edge.commands.console import notes

    home = homes.locate()
    settings = home.settings()
    model = home.base_file if base else _personal(home, settings)
    with notes.status("loading"):
        from comigs_edge.chat import Chat
        from comigs_edge.tokens import Tokenizer

        options = settings.chat
        session = Chat(
            model, Tokenizer(home.base_file), options.system if system is None else system, options.context,
            settings.device().usable_threads, options.temperature if temperature is None else temperature,
            options.top_p, options.max_tokens, seed,
        )  # fmt: skip
    if prompt is not None:
        _say(session, prompt)
    else:
        _converse(session, model)


def _personal(home: Home, settings: Config) -> Path:
    from comigs_edge import session
    from comigs_edge.commands.console import bar

    path = session.current_export(home, settings)
    if path is None:
        with bar("exporting your model") as progress:
            path = session.export_newest(home, settings, settings.export.format, None, progress).path
    return path


def _converse(session: Chat, model: Path) -> None:
    from comigs_edge.commands.console import out

    out.print(f"[dim]{model}\n{HELP}[/]", soft_wrap=True)
    _enable_line_editing()
    while True:
        try:
            text = input("\n> ").strip()
        except EOFError:
            out.print()
            return
        except KeyboardInterrupt:
            out.print(f"\n[dim]{HELP}[/]")
            continue
        command, _, rest = text.partition(" ")
        if command in ("/exit", "/quit", "/bye"):
            return
        if command == "/clear":
            session.clear()
        elif command == "/system":
            session.set_system(rest)
            out.print("[dim]a new conversation with this system prompt[/]")
        elif command.startswith("/"):
            out.print(f"[dim]{HELP}[/]")
        elif text:
            _say(session, text)


def _say(session: Chat, text: str) -> None:
    """Prints the answer as it comes; Ctrl-C ends the answer, not the program."""
    from comigs_edge.errors import ComigsError

    try:
        for piece in session.answer(text):
            typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        typer.echo(" [stopped]", nl=False)
    except ComigsError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
    typer.echo()


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401  (its import is what gives `input` history and cursor keys)
    except ImportError:
        pass
