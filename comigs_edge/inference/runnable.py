"""Whether llama.cpp runs a base, and what a person should know of how it will chat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from comigs_edge import llamacpp
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.errors import ComigsError


def check_runnable(path: Path) -> list[str]:
    """What is odd about chats with this base, a sentence each.

    Raises `ComigsError` if llama.cpp cannot load its vocabulary, template or weights, or if the template refuses every chat.
    """
    try:
        _check_numbers(path)
        return list(_oddities(Tokenizer(path)))
    except ComigsError as error:
        raise ComigsError(f"{str(error).rstrip('.')}; nobody could chat with this base: choose another one") from error


def _check_numbers(path: Path) -> None:
    """Raises `ComigsError` where what the base computes are no numbers."""
    llama = llamacpp.load(path, n_ctx=64, n_batch=64, logits_all=True)
    try:
        llama.eval([0])
        if not np.isfinite(llama.scores[0]).all():
            raise ComigsError(f"{path} is damaged: what it computes are no numbers; get the file again")
    finally:
        llama.close()


def _oddities(tokenizer: Tokenizer) -> Iterator[str]:
    if tokenizer.metadata.get("tokenizer.ggml.model") == "gpt2" and "tokenizer.ggml.pre" not in tokenizer.metadata:
        yield (
            "the base does not say how its text is split into tokens (tokenizer.ggml.pre is missing): llama.cpp's default is "
            "used, and answers are worse where that is not the base's own; get a newer GGUF file of it"
        )
    after = tokenizer.template.after_answer()  # raises where every chat is refused
    end = f"its vocabulary's own end, {tokenizer.piece(tokenizer.eos).decode('utf-8', 'replace')}," if tokenizer.eos >= 0 else ""
    if tokenizer.lacking_end:
        whose = "the base's chat template" if tokenizer.has_template else "ChatML, for want of a template in the base,"
        yield f"{whose} ends an answer with {tokenizer.lacking_end}, which its vocabulary lacks: {end} is used"
    elif not tokenizer.ends_answers():
        yield (
            f"the base's chat template ends an answer with {after!r}, which is no token that ends one: an answer may go on as "
            "far as max_tokens in [chat] of config.toml"
        )
