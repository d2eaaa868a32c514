"""A conversation with a GGUF file in llama.cpp.

The prompt is tokenised by `data/tokenizer.py`, exactly as chats are for training; the whole history is in it, and llama.cpp
computes only what is new since the last turn.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from comigs_edge import llamacpp
from comigs_edge.data.document import Message
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.errors import ComigsError
from comigs_edge.inference.pieces import decode, until
from comigs_edge.inference.sampling import Sampling


class Pace(NamedTuple):
    """How fast an answer came."""

    read: int  # tokens of the prompt that were computed for it, together
    wait: float  # seconds until the first token
    tokens: int  # of the answer
    seconds: float  # between its first and its last token

    def __str__(self) -> str:
        rate = f", {(self.tokens - 1) / self.seconds:.1f} a second" if self.seconds else ""
        return f"{self.tokens} tokens{rate}; the first after {self.wait:.1f} s, {self.read} of the prompt read"


class Chat:
    """One conversation. `messages` is its history; a system prompt, if there is one, stands first.

    `left_out` is how many messages have left it since the context was full, `pace` how fast the last answer came.
    """

    def __init__(
        self, model: Path, adapters: tuple[Path, ...], tokenizer: Tokenizer, system: str, context: int, threads: int,
        sampling: Sampling, max_tokens: int, seed: int | None = None, mmap: bool = True,
        cache: str = "F16", batch: int = 512, stops: Sequence[str] = (), gpu_layers: int = 0,
    ) -> None:  # fmt: skip
        self._options = llamacpp.context_options(
            context=context, threads=threads, batch=batch, cache=cache, mmap=mmap, gpu_layers=gpu_layers
        )
        if seed is not None:
            self._options["seed"] = seed
        self._load(model, adapters)
        self.tokenizer, self.context, self.max_tokens = tokenizer, context, max_tokens
        self.sampling, self.stops = sampling, stops
        self.pace: Pace | None = None
        self.messages: list[Message] = []
        self.set_system(system)

    def _load(self, model: Path, adapters: tuple[Path, ...]) -> None:
        self.model = model
        self.llama = llamacpp.load(model, **self._options)
        self.adapters = llamacpp.LoadedAdapters(self.llama)
        if adapters:
            self.adapters.use(adapters)

    def close(self) -> None:
        """Gives the model's memory back."""
        self.llama.close()

    def swap(self, model: Path, adapters: tuple[Path, ...]) -> None:
        """Goes on with another model; where only its adapters differ, llama.cpp swaps them in place."""
        if model == self.model and adapters:
            self.adapters.use(adapters)
            return
        before = self.llama
        self._load(model, adapters)
        before.close()

    def set_system(self, text: str) -> None:
        """Starts over with this system prompt; an empty one leaves the model's own."""
        self.messages = [Message("system", text.strip())] if text.strip() else []
        self.left_out = 0

    def clear(self) -> None:
        """Forgets the conversation, but not the system prompt."""
        self.set_system(self.system)

    @property
    def system(self) -> str:
        """The system prompt; empty where the model's own is left."""
        return "".join(message.content for message in self.messages if message.role == "system")

    def answer(self, text: str) -> Generator[str, None, None]:
        """The answer in pieces, as they come. However it ends, what was said so far is in the history.

        Raises `ComigsError`, at once, where the message is longer than the context.
        """
        if self.messages and self.messages[-1].role == "user":  # whose answer was stopped before it began
            self.messages.pop()
        self.messages.append(Message("user", text.strip()))
        return self._answer(self._prompt())

    def _answer(self, prompt: list[int]) -> Generator[str, None, None]:
        said = ""
        try:
            for piece in until(decode(self.tokenizer, self._draw(prompt)), self.stops):
                said += piece
                yield piece
        finally:
            self.messages.append(Message("assistant", said.strip()))

    def _draw(self, prompt: list[int]) -> Iterator[int]:
        """The tokens of the answer, and in `pace` how fast they came."""
        way = self.sampling
        llamacpp.reset_counts(self.llama)
        read, first = 0, (start := time.monotonic())
        drawn = self.llama.generate(
            prompt,
            temp=way.temperature,
            top_p=way.top_p,
            top_k=int(way.top_k),
            min_p=way.min_p,
            repeat_penalty=way.repeat_penalty,
        )
        room = min(self.max_tokens, self.context - len(prompt))
        for count, token in enumerate(drawn, 1):
            now = time.monotonic()
            if count == 1:
                first, read = now, llamacpp.counts(self.llama)[0]
            self.pace = Pace(read, first - start, count, now - first)
            if self.tokenizer.is_end(token):
                break
            yield token
            if count >= room:
                break

    def _prompt(self) -> list[int]:
        """Token ids of the history. Where a quarter of the context is not left to answer, the oldest turns leave.

        They leave until half of it is, so that the next answers can begin with what llama.cpp has computed.
        """
        ids, most = self._ids(self.messages), self.context * 3 // 4
        if len(ids) <= most:
            return ids
        system = [message for message in self.messages if message.role == "system"]
        said = [message for message in self.messages if message.role != "system"]
        starts = [index for index, message in enumerate(said) if message.role == "user"]  # an answer goes with its question
        fits = bisect_left(starts, True, key=lambda start: len(self._ids(system + said[start:])) <= self.context // 2)
        start = starts[min(fits, len(starts) - 1)]
        ids = self._ids(system + said[start:])
        if len(ids) > most:
            self.messages.pop()
            raise ComigsError(
                f"this message has {len(ids):,} tokens, and of the context's {self.context:,} there are {most:,} for it "
                f"and {self.context - most:,} kept for the answer; shorten it, or raise context in [chat] of config.toml"
            )
        self.messages = system + said[start:]
        self.left_out += start
        return ids

    def _ids(self, messages: list[Message]) -> list[int]:
        return self.tokenizer.chat(tuple(messages), for_answer=True).ids
