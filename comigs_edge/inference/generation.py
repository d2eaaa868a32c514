"""The tokens of one answer as text, as they come, up to its end, its room or a text at which it stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

import llama_cpp

from comigs_edge import llamacpp
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.inference.openai_api import Finish
from comigs_edge.inference.pieces import decode, until
from comigs_edge.inference.sampling import Sampling


class Stopped(Exception):
    """Nobody wants the answer any more."""


class Generation:
    """Iterated, it gives the answer in pieces; `tokens` and `finish` tell afterwards how many there were and why it ended.

    Raises `Stopped` within a token, or within some operations of reading a long prompt, once `is_wanted` says no.
    """

    def __init__(
        self, llama: llama_cpp.Llama, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling, *,
        room: int, stop: tuple[str, ...] = (), penalties: dict[str, float] | None = None, seed: int | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        self.tokens = 0
        self.finish: Finish = "stop"
        self._llama, self._tokenizer, self._prompt, self._room = llama, tokenizer, prompt, room
        self._stop, self._is_wanted = stop, is_wanted
        ways = asdict(sampling)
        self._ways: dict[str, float] = {
            "temp": ways.pop("temperature"),
            "top_k": int(ways.pop("top_k")),
            **ways,
            **(penalties or {}),
        }
        llama.set_seed(llama_cpp.LLAMA_DEFAULT_SEED if seed is None else seed % llama_cpp.LLAMA_DEFAULT_SEED)

    def __iter__(self) -> Iterator[str]:
        return filter(None, until(decode(self._tokenizer, self._tokens()), self._stop))

    def _tokens(self) -> Iterator[int]:
        for token in self._drawn():
            self.tokens += 1
            if self._tokenizer.is_end(token):
                break
            yield token
            if self.tokens >= self._room:
                self.finish = "length"
                break

    def _drawn(self) -> Iterator[int]:
        drawn = self._llama.generate(self._prompt, **self._ways)
        with llamacpp.abortable(self._llama, self._is_wanted):  # reading a long prompt takes a small board minutes
            try:
                token = next(drawn)
            except RuntimeError:
                if self._is_wanted():
                    raise
                self._llama.reset()
                raise Stopped from None
        while self._is_wanted():
            yield token
            token = next(drawn)
        raise Stopped
