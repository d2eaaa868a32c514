"""A conversation that a person types: messages, and commands that begin with a stroke."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import typer

from comigs_edge.commands import message
from comigs_edge.commands.console import fact, notes, out
from comigs_edge.data.document import Message
from comigs_edge.errors import EXPECTED, ComigsError, sentence
from comigs_edge.inference.history import Mark
from comigs_edge.inference.record import Record
from coordinator.protocol.text import printable, readable

if TYPE_CHECKING:
    from comigs_edge.inference.chat import Chat

START = "/help shows the commands, /exit ends, Ctrl-C stops an answer"
HELP = '''\
/exit            ends, as Ctrl-D does; Ctrl-C stops an answer
"""              begins and ends a message of several lines
/clear           forgets the conversation: a new one begins
/system [TEXT]   a new conversation with this system prompt, or shows the present one
/compare [TEXT]  your model and the base side by side: the last question, or TEXT
/good  /bad      marks the last answer
/edit [TEXT]     changes the last answer to what it should have been, or to TEXT
/stats           tokens a second, on and off
Good and edited answers become training text with: comigs-edge data add --chats'''
ENDS = ("/exit", "/quit", "/bye")
ALONE = (*ENDS, "/clear", "/good", "/bad", "/stats")  # nothing stands behind them
SIDE_BY_SIDE = 80  # columns from which two answers stand beside each other
NAMES = ("your model", "the base")


@dataclass
class Conversation:
    """One conversation; `renew` takes a newer model over, `open_other` loads the other one, your model or the base."""

    session: Chat
    record: Record
    is_base: bool
    renew: Callable[[Chat], None]
    open_other: Callable[[], Chat]
    stats: bool = False
    _noticed: bool = field(default=False, init=False)  # that the context is full
    _edited: Message | None = field(default=None, init=False)  # the answer that was changed last

    def say(self, text: str) -> None:
        """Prints the answer as it comes; raises `ComigsError` where none comes to its end."""
        shown = readable if sys.stdout.isatty() else str  # a program gets the very characters
        with _told(before=typer.echo), closing(self._answer(text)) as pieces:
            for piece in pieces:
                typer.echo(shown(piece), nl=False)
        typer.echo()
        self._comment()

    def converse(self) -> None:
        """Talks until the person leaves."""
        self._greet()
        message.enable_line_editing()
        while True:
            try:
                text = message.read_message()
            except EOFError:
                out.print()
                return
            except KeyboardInterrupt:
                out.print(f"\n{START}", style="dim")
                continue
            if text in ENDS:
                return
            try:
                self._react(text)
            except KeyboardInterrupt:
                typer.echo(" [stopped]")
            except EXPECTED as error:
                notes.print(f"error: {sentence(error)}", style="red", soft_wrap=True)

    def _greet(self) -> None:
        """What stands above a conversation; of one that goes on its last turn."""
        kept = "kept on this device (comigs-edge chats off: none is)" if self.record.history else "not kept"
        out.print(f"{printable(str(self.session.model))}\n{START}; this chat is {kept}", style="dim", soft_wrap=True)
        if self.session.messages and self.session.messages[-1].role == "assistant":
            asked, said = self._last()
            out.print(f"\n> {asked.content}\n{said.content}", style="dim", soft_wrap=True)

    def _react(self, text: str) -> None:
        command, rest = (*text.split(maxsplit=1), "", "")[:2]
        if rest and command in ALONE:
            out.print(f"{command} takes no text, and nothing was done; it stands alone in its line", style="dim", soft_wrap=True)
        elif command in self._commands:
            self._commands[command](rest)
        elif re.fullmatch("/[a-z?]*", command):  # a path has more in it than one word
            unknown = "" if command in ("/", "/?", "/help") else f"there is no {command}, and nothing was asked; what there is:\n"
            out.print(f"{unknown}{HELP}", style="dim", soft_wrap=True)
        elif text:
            self.renew(self.session)
            self.say(text)

    @property
    def _commands(self) -> dict[str, Callable[[str], None]]:
        return {
            "/clear": self._clear, "/system": self._set_system, "/compare": self._compare, "/edit": self._edit,
            "/good": partial(self._mark, "good"), "/bad": partial(self._mark, "bad"), "/stats": self._toggle_stats,
        }  # fmt: skip

    def _clear(self, _: str) -> None:
        self.session.clear()
        self._begin_anew()

    def _set_system(self, text: str) -> None:
        if not text:
            present = self.session.system
            said = f"the system prompt: {present}" if present else "there is no system prompt; /system TEXT sets one"
            out.print(said, style="dim", soft_wrap=True)
            return
        self.session.set_system(text)
        self._begin_anew()
        out.print("a new conversation with this system prompt", style="dim")

    def _begin_anew(self) -> None:
        self.record.leave()
        self._noticed = False

    def _toggle_stats(self, _: str) -> None:
        self.stats = not self.stats
        if self.stats and self.session.pace:
            out.print(str(self.session.pace), style="dim")

    def _mark(self, mark: Mark, _: str) -> None:
        self.record.mark(mark)
        out.print(f"marked as {mark}", style="dim")

    def _edit(self, text: str) -> None:
        before = self._last()[1].content
        after = text or message.edit(before)
        if after == before:
            out.print("the answer stays as it was", style="dim")
            return
        if self.record.history:
            self.record.mark("edited", after)
        self._edited = self.session.messages[-1] = Message("assistant", after)
        out.print("the answer is changed, also for what follows", style="dim")

    def _last(self) -> list[Message]:
        """The last question and its answer."""
        if not self.session.messages or self.session.messages[-1].role != "assistant":
            raise ComigsError("there is no answer yet; ask something first")
        return self.session.messages[-2:]

    def _compare(self, text: str) -> None:
        """The last question's answers, or those of `text`, of your model and of the base."""
        if text:
            self.renew(self.session)
            with notes.status(f"{NAMES[self.is_base]} answers"), _told():
                "".join(self._answer(text))
            self._comment()
        asked, said = self._last()
        other = self.open_other()
        other.messages = self.session.messages[:-2]
        with closing(other), notes.status(f"{NAMES[not self.is_base]} answers"), _told():
            answer = "".join(other.answer(asked.content)).strip()
        own = "your edit" if said is self._edited else NAMES[self.is_base]
        pair = (own, said.content), (NAMES[not self.is_base], answer)
        show_side_by_side(*(pair[::-1] if self.is_base else pair))

    def _answer(self, text: str) -> Generator[str, None, None]:
        """The answer in pieces, kept when it has ended, however that is."""
        said = ""
        with closing(self.session.answer(text)) as pieces:
            self.record.ask(self.session.system, text)
            try:
                for piece in pieces:
                    said += piece
                    yield piece
            finally:
                self.record.answer(said.strip(), self.session.model.name)

    def _comment(self) -> None:
        """What is said below an answer."""
        if self.session.left_out and not self._noticed:
            self._noticed = True
            notes.print(
                f"the conversation is longer than the context of {self.session.context:,} tokens: its oldest messages are no "
                "longer read; more fits with a larger context in [chat] of config.toml",
                style="dim", soft_wrap=True,
            )  # fmt: skip
        if self.stats and self.session.pace:
            notes.print(str(self.session.pace), style="dim", soft_wrap=True)


@contextmanager
def _told(before: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Says an error of llama.cpp in a sentence, after a call of `before`."""
    try:
        yield
    except RuntimeError as error:
        before()
        raise ComigsError(f"llama.cpp could not answer ({error}); end other programs, or lower context in config.toml") from error


def show_side_by_side(*answers: tuple[str, str]) -> None:
    """Two answers with their names beside each other, or below each other where the terminal is narrow or there is none."""
    if not out.is_terminal or message.is_dumb() or out.width < SIDE_BY_SIDE:
        for name, answer in answers:
            fact(f"{name}: ", answer)
        return
    from rich.table import Table

    table = Table(box=None, expand=True, padding=(0, 2, 0, 0))
    for name, _ in answers:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(readable(answer) for _, answer in answers))
    out.print(table)
