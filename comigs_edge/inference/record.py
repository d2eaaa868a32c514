"""The chat that goes on, as it is kept. Where that fails it is said once, and the chat goes on without."""

from __future__ import annotations

from collections.abc import Callable

from comigs_edge.data.document import Message
from comigs_edge.errors import EXPECTED, ComigsError, sentence
from comigs_edge.inference.history import History, Mark, turns


class Record:
    """One conversation in the history; `history` is None where nothing is kept. `warn` gets the one sentence of a failure."""

    def __init__(self, history: History | None, warn: Callable[[str], None], chat: int | None = None) -> None:
        self.history, self.chat = history, chat
        self._warn = warn
        self._question = self._answer = 0  # numbers of the last messages; 0: none

    def ask(self, system: str, text: str) -> None:
        """Keeps a question before it is answered."""
        self._question = self._answer = 0
        if self.history:
            try:
                self.chat, self._question = self.history.ask(self.chat, system, text)
            except EXPECTED as error:
                self._give_up(error)

    def answer(self, text: str, model: str) -> None:
        """Keeps the answer, unless it has no word."""
        if self.history and self.chat is not None and self._question and text:
            try:
                self._answer = self.history.answer(self.chat, self._question, text, model)
            except EXPECTED as error:
                self._give_up(error)

    def mark(self, mark: Mark, content: str | None = None) -> None:
        """Marks the last answer; raises `ComigsError` where it is not kept."""
        if not self.history:
            raise ComigsError("this chat is not kept, so an answer has no mark either; begin one with: comigs-edge chat --keep")
        if not self._answer:
            raise ComigsError("there is no answer to mark yet; ask something first")
        self.history.mark(self._answer, mark, content)

    def go_on(self) -> list[Message]:
        """What was said in the chat that goes on, its system prompt first; the last answer is the one that can be marked."""
        if not self.history or self.chat is None:
            return []
        system = self.history.system(self.chat)
        pairs = turns(self.history.messages(self.chat))
        self._answer = pairs[-1][1].id if pairs else 0
        begins = [Message("system", system)] if system else []
        return begins + [Message(each.role, each.content) for pair in pairs for each in pair]

    def leave(self) -> None:
        """What is asked next begins another chat."""
        self.chat, self._answer = None, 0

    def _give_up(self, error: BaseException) -> None:
        self.history = None
        self._warn(f"this chat is no longer kept: {sentence(error)}")
