"""`comigs-edge chat`: talk with the personal model, or with the base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from comigs_edge.commands import chat_options as options
from comigs_edge.commands import completion
from comigs_edge.commands.console import bar, notes, out, warn
from comigs_edge.commands.conversation import Conversation
from comigs_edge.commands.message import find_message
from comigs_edge.commands.settings import settings_of
from comigs_edge.data.document import Message
from comigs_edge.errors import EXPECTED, sentence
from comigs_edge.home import folder as homes
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from comigs_edge.inference.history import History
from comigs_edge.inference.record import Record
from profiles.chat import ChatPlan
from profiles.detect import detect
from profiles.watch import OtherLoad

if TYPE_CHECKING:
    from comigs_edge.export.current import Exported
    from comigs_edge.inference.chat import Chat


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
    stats: Annotated[bool, typer.Option("--stats", help="Say below each answer how many tokens a second it had.")] = False,
    go_on: options.GoOn = False,
    number: options.Number = None,
    keep: options.Keep = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    lines: Annotated[
        Optional[list[str]],
        typer.Option(
            "--plan",
            metavar="NAME=VALUE",
            autocompletion=completion.chat_lines,
            help="Fixes threads, mmap, cache, batch or gpu_layers; may be given several times.",
        ),
    ] = None,
) -> None:
    """Talk with your model. It is exported first if it has been trained since."""
    from comigs_edge.home.versions import versions

    goes_on = go_on or number is not None
    if goes_on and system is not None:
        raise typer.BadParameter("--system begins a new chat; leave it out, or do not go on with one")
    home = homes.locate()
    settings = settings_of(home)
    wishes = {
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, "repeat_penalty": repeat_penalty,
    }  # fmt: skip
    opening = Opening(
        home=home, settings=settings, flags=lines or [], system=settings.chat.system if system is None else system,
        wishes=wishes, seed=seed, max_tokens=max_tokens or settings.chat.max_tokens, stops=[each for each in stop or () if each],
    )  # fmt: skip
    text = find_message(prompt, file)
    if keep is None and text is not None and not goes_on:
        keep = False
    record, said = _open_record(History(home.chats_file), go_on, number, keep)
    version = max(versions(home.adapters), default=0)  # before it is loaded: a newer one may come meanwhile
    personal = None if base else _personal(home, settings)
    session = opening.open(personal)
    session.messages = said or session.messages
    conversation = Conversation(
        session=session, record=record, is_base=base, stats=stats,
        renew=(lambda _: None) if base else _renewal(home, settings, version),
        open_other=lambda: opening.open(_personal(home, settings) if base else None),
    )  # fmt: skip
    if text is None:
        conversation.converse()
    else:
        conversation.say(text)


def _open_record(history: History, go_on: bool, number: int | None, keep: bool | None) -> tuple[Record, list[Message]]:
    """Where this chat is kept, and what was said in it before. `keep` is as the command line has it; None: as the owner set it.

    Raises `ComigsError` where the chat with this number cannot be read; else what is wrong is said, and nothing is kept.
    """
    if number is not None:
        history.system(number)
    try:
        record = Record(history, warn, history.last() if go_on and number is None else number)
        if go_on and record.chat is None:
            warn("there is no chat to go on with yet; this is a new one")
        said = record.go_on()
        if keep is False or (keep is None and history.setting("keep") is False):
            record.history = None
        return record, said
    except EXPECTED as error:
        warn(f"this chat is not kept: {sentence(error)}")
        return Record(None, warn), []


def _personal(home: Home, settings: Config) -> Exported:
    from comigs_edge.export.current import find_current

    storage = settings.storage()
    exported = find_current(home, settings, storage, warn)
    if exported is None:
        from comigs_edge.export import folder as models

        with bar("exporting your model") as progress:
            exported = models.export_newest(home, settings, storage, None, progress)
    return exported


def _renewal(home: Home, settings: Config, version: int) -> Callable[[Chat], None]:
    """What changes a chat to the newest adapters if they are newer than `version`."""
    from comigs_edge.home.versions import versions

    def renew(session: Chat) -> None:
        nonlocal version
        newest = max(versions(home.adapters), default=version)
        if newest != version:
            version = newest
            try:
                personal = _personal(home, settings)
                session.swap(personal.path, personal.adapters)
                out.print(f"your model has changed: continuing with version {newest}", style="dim")
            except EXPECTED as error:
                out.print(f"version {newest} cannot be used, continuing with the one before: {sentence(error)}", style="dim")

    return renew


@dataclass(kw_only=True)
class Opening:
    """How a model is loaded for a chat: yours, and the base beside it in the same way."""

    home: Home
    settings: Config
    flags: list[str]  # of the plan
    system: str
    wishes: dict[str, float | None]  # of sampling
    seed: int | None
    max_tokens: int
    stops: list[str]
    load: OtherLoad = field(default_factory=OtherLoad)

    def open(self, personal: Exported | None) -> Chat:
        """A chat with this model, None: the base; raises `ComigsError` where too little memory is left."""
        with notes.status("loading"):
            session, plan = self._load(personal)
        if plan.context < self.settings.chat.context:
            notes.print(f"context: {plan.context} tokens; {plan.reasons['context']}", style="dim", soft_wrap=True)
        return session

    def _load(self, personal: Exported | None) -> tuple[Chat, ChatPlan]:
        from comigs_edge.data.tokenizer import Tokenizer
        from comigs_edge.inference.chat import Chat
        from comigs_edge.inference.sampling import choose_sampling
        from comigs_edge.planning import plan as planning

        home, settings = self.home, self.settings
        tokenizer = Tokenizer(home.base_file, settings.model.thinking)
        plan = planning.chat_plan(
            settings, home.base_file, profile=settings.device(), device=detect(),
            size=personal.size if personal else settings.base.size, busy=self.load.read() or 0,
            flags=planning.parse(self.flags, planning.CHAT_LINES), model=personal.path if personal else None,
        )  # fmt: skip
        wishes = {name: getattr(settings.chat, name, None) if wish is None else wish for name, wish in self.wishes.items()}
        session = Chat(
            personal.path if personal else home.base_file, personal.adapters if personal else (), tokenizer, self.system,
            plan.context, plan.threads, choose_sampling(tokenizer.metadata, **wishes),
            self.max_tokens, self.seed, plan.mmap, plan.cache, plan.batch, self.stops, plan.gpu_layers,
        )  # fmt: skip
        return session, plan
