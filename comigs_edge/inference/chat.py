"""A conversation with a GGUF file in llama.cpp.

The prompt is tokenised by `data/tokenizer.py`, exactly as chats are for training; the whole history is in it, and llama.cpp
computes only what is new since the last turn. When the context is full the oldest turns are left out.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from comigs_edge import llamacpp
from comigs_edge.data.document import Message
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.errors import ComigsError
from comigs_edge.inference.sampling import Sampling


class Chat:
    """One conversation. `messages` is its history; a system prompt, if there is one, stands first."""

    def __init__(
        self, model: Path, adapters: tuple[Path, ...], tokenizer: Tokenizer, system: str, context: int, threads: int,
        sampling: Sampling, max_tokens: int, seed: int | None = None, mmap: bool = True,
        cache: str = "F16", batch: int = 512, gpu_layers: int = 0,
    ) -> None:  # fmt: skip
        self._options = llamacpp.context_options(
            context=context, threads=threads, batch=batch, cache=cache, mmap=mmap, gpu_layers=gpu_layers
        )
        if seed is not None:
            self._options["seed"] = seed
        self._load(model, adapters)
        self.tokenizer, self.context, self.max_tokens = tokenizer, context, max_tokens
        self.sampling = sampling
        self.messages: list[Message] = []
        self.set_system(system)

    def _load(self, model: Path, adapters: tuple[Path, ...]) -> None:
        self.model = model
        self.llama = llamacpp.load(model, **self._options)
        self.adapters = llamacpp.LoadedAdapters(self.llama)
        if adapters:
            self.adapters.use(adapters)

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

    def clear(self) -> None:
        """Forgets the conversation, but not the system prompt."""
        self.messages = [message for message in self.messages if message.role == "system"]

    def answer(self, text: str) -> Iterator[str]:
        """The answer in pieces, as they come. However it ends, what was said so far is in the history."""
        self.messages.append(Message("user", text.strip()))
        prompt = self._prompt()
        way = self.sampling
        drawn = self.llama.generate(
            prompt,
            temp=way.temperature,
            top_p=way.top_p,
            top_k=int(way.top_k),
            min_p=way.min_p,
            repeat_penalty=way.repeat_penalty,
        )
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character can span two tokens
        said = ""
        try:
            room = min(self.max_tokens, self.context - len(prompt))
            for count, token in enumerate(drawn, 1):
                if self.tokenizer.is_end(token):
                    break
                piece = decoder.decode(self.tokenizer.piece(token))
                said += piece
                yield piece
                if count >= room:
                    break
        finally:
            self.messages.append(Message("assistant", said.strip()))

    def _prompt(self) -> list[int]:
        """Token ids of the history, without the oldest turns if a quarter of the context were not left to answer."""
        most = self.context * 3 // 4
        while True:
            ids = self.tokenizer.chat(tuple(self.messages), for_answer=True).ids
            if len(ids) <= most:
                return ids
            turns = [index for index, message in enumerate(self.messages) if message.role != "system"]
            if len(turns) == 1:
                self.messages.pop()
                raise ComigsError(
                    f"this message has {len(ids):,} tokens, and of the context's {self.context:,} there are {most:,} for it "
                    f"and {self.context - most:,} kept for the answer; shorten it, or raise context in [chat] of config.toml"
                )
            del self.messages[turns[0]]
            if len(turns) > 2 and self.messages[turns[0]].role == "assistant":
                del self.messages[turns[0]]  # an answer goes with its question
