"""`comigs-edge chat`: talk with the personal model, or with the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from comigs_edge.commands.console import bar, notes, out
from comigs_edge.errors import USER_ERRORS, ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from profiles.detect import detect
from profiles.watch import OtherLoad

if TYPE_CHECKING:
    from comigs_edge.export.merged import Exported
    from comigs_edge.inference.chat import Chat

HELP = "/exit ends, /clear forgets the conversation, /system TEXT sets the system prompt, Ctrl-C stops an answer"


def chat(
    base: Annotated[bool, typer.Option("--base", help="Talk with the base model instead of yours.")] = False,
    prompt: Annotated[Optional[str], typer.Option(metavar="TEXT", help="Answer this once and end; for scripts.")] = None,
    system: Annotated[Optional[str], typer.Option(metavar="TEXT", help="System prompt, in place of config.toml's.")] = None,
    temperature: Annotated[
        Optional[float], typer.Option(min=0.0, help="Randomness of the answers; 0 = always the likeliest token.")
    ] = None,
    seed: Annotated[Optional[int], typer.Option(min=0, help="The same seed gives the same answers.")] = None,
    lines: Annotated[
        Optional[list[str]],
        typer.Option("--plan", metavar="NAME=VALUE", help="Fixes threads, mmap, cache or batch; may be given several times."),
    ] = None,
) -> None:
    """Talk with your model. It is exported first if it has been trained since."""
    from comigs_edge.home.versions import versions

    home, load = homes.locate(), OtherLoad()
    settings = home.settings()
    version = max(versions(home.adapters), default=0)  # before it is loaded: a newer one may come meanwhile
    personal = None if base else _personal(home, settings)
    with notes.status("loading"):
        from comigs_edge.data.tokenizer import Tokenizer
        from comigs_edge.inference.chat import Chat
        from comigs_edge.inference.sampling import choose_sampling
        from comigs_edge.planning import plan as planning

        options, tokenizer = settings.chat, Tokenizer(home.base_file)
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
            options.max_tokens, seed, plan.mmap, plan.cache, plan.batch,
        )  # fmt: skip
    if plan.context < options.context:
        notes.print(f"[dim]context: {plan.context} tokens; {plan.reasons['context']}[/]", soft_wrap=True)
    if prompt is not None:
        _say(session, prompt)
    else:
        _converse(session, home, settings if personal else None, version)


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
            out.print(f"[dim]your model was trained since: continuing with version {newest}[/]")
        except USER_ERRORS as error:
            out.print(f"[dim]version {newest} cannot be used, continuing with the one before: {error}[/]")
    return newest


def _converse(session: Chat, home: Home, settings: Config | None, version: int) -> None:
    """Talks until the person leaves; `settings` are None for the base, which nothing makes newer."""
    out.print(f"[dim]{session.model}\n{HELP}[/]", soft_wrap=True)
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
            if settings:
                version = _swap_if_newer(session, home, settings, version)
            _say(session, text)


def _say(session: Chat, text: str) -> None:
    """Prints the answer as it comes; Ctrl-C ends the answer, not the program."""
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
