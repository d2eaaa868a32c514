"""The one model in llama.cpp that answers a server's requests; another takes its place where one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp

from comigs_edge import llamacpp
from comigs_edge.data.document import Document, Message
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.errors import ComigsError
from comigs_edge.inference.generation import Generation, Stopped
from comigs_edge.inference.openai_api import Ask, Finish, Refused
from comigs_edge.inference.sampling import choose_sampling


@dataclass(frozen=True)
class Model:
    """A model's files; the label says which version it is."""

    label: str
    path: Path
    adapters: tuple[Path, ...] = ()


class Started(NamedTuple):
    """The prompt is read next."""

    label: str
    prompt_tokens: int


class Ended(NamedTuple):
    """The answer is complete."""

    finish: Finish
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What holds where a request says nothing."""

    system: str
    max_tokens: int
    sampling: dict[str, float | None]


class Engine:
    """`find` gives the newest files of a model's name, or raises `Refused`; `options` are llama.cpp's, with `n_ctx`.

    For one thread at a time.
    """

    def __init__(self, tokenizer: Tokenizer, find: Callable[[str], Model], options: dict[str, Any], defaults: Defaults) -> None:
        self._tokenizer, self._find, self._options, self._defaults = tokenizer, find, options, defaults
        self._model: Model | None = None
        self._llama: llama_cpp.Llama = None
        self._adapters: llamacpp.LoadedAdapters | None = None

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return int(self._options["n_ctx"])

    def answer(self, name: str, ask: Ask, is_wanted: Callable[[], bool]) -> Iterator[Started | str | Ended]:
        """Of the model with this name: `Started`, the answer in pieces, `Ended`.

        Raises `Refused`, or `Stopped` once `is_wanted` says no.
        """
        if not is_wanted():
            raise Stopped
        model = self._find(name)
        prompt = self._prompt(ask)
        self._use(model)
        yield Started(model.label, len(prompt))
        wanted = self._defaults.sampling | ask.sampling
        generation = Generation(
            self._llama, self._tokenizer, prompt, choose_sampling(self._tokenizer.metadata, **wanted), seed=ask.seed,
            room=min(ask.max_tokens or self._defaults.max_tokens, self.context - len(prompt)), stop=ask.stop,
            penalties=ask.penalties, is_wanted=is_wanted,
        )  # fmt: skip
        yield from generation
        yield Ended(generation.finish, generation.tokens)

    def close(self) -> None:
        """Gives the model's memory back."""
        if self._llama is not None:
            self._llama.close()
        self._llama = self._model = self._adapters = None

    def _use(self, model: Model) -> None:
        if model == self._model:
            return
        if self._model is None or model.path != self._model.path or not model.adapters:
            self.close()  # first: two models may not fit
            self._llama = llamacpp.load(model.path, **self._options)
            self._adapters = llamacpp.LoadedAdapters(self._llama)
        if model.adapters and self._adapters is not None:
            self._adapters.use(model.adapters)
        self._model = model

    def _prompt(self, ask: Ask) -> list[int]:
        """Token ids, as training makes them of the same chat or text."""
        try:
            if ask.is_chat:
                has_system = ask.messages[0].role == "system"
                own = () if has_system or not self._defaults.system else (Message("system", self._defaults.system),)
                ids = self._tokenizer.chat((*own, *ask.messages), for_answer=True).ids
            else:
                ids = self._tokenizer.encode(Document(ask.text)).ids or [self._tokenizer.bos]
        except ComigsError as error:
            raise Refused(400, str(error), param="messages") from error
        if len(ids) >= self.context:
            name = "messages" if ask.is_chat else "prompt"
            raise Refused(
                400, f"This model's maximum context length is {self.context} tokens. However, your {name} resulted in "
                f"{len(ids)} tokens. Please reduce the length of the {name}.", param=name, code="context_length_exceeded",
            )  # fmt: skip
        return ids
