"""What a training reads: rows of the home's text, and the base's ordinary text."""

from __future__ import annotations

from comigs_edge.data.tokenizer import Tokenizer, encode
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home, corpus
from comigs_edge.progress import Progress
from comigs_edge.training.batches import Rows
from comigs_edge.training.ordinary import TEST_SHARE, OrdinaryText, Part

TOKENS = 1_500_000  # of training text that are read at least: seven times what the default steps take


def open_ordinary(home: Home, settings: Config, tokenizer: Tokenizer) -> list[OrdinaryText]:
    """The text that the closing phase learns from, and that which tells what is lost elsewhere."""
    return [open_part(home, settings, "learning", tokenizer), open_part(home, settings, "test", tokenizer)]


def open_part(home: Home, settings: Config, part: Part, tokenizer: Tokenizer) -> OrdinaryText:
    """One part of the ordinary text."""
    tokens = settings.train.ordinary_tokens // (TEST_SHARE if part == "test" else 1)
    return OrdinaryText(home.state, settings.base.sha256, part, tokens, tokenizer)


def read_rows(
    home: Home, settings: Config, context: int, tokenizer: Tokenizer, refused: list[str], progress: Progress,
    tokens: int = TOKENS,
) -> tuple[Rows, Rows]:  # fmt: skip
    """Training and validation rows, of `context` tokens, of the home's text; raises `ComigsError` if there is too little.

    Of long text they have the first `tokens` tokens of training text, and an eighth as many for validation; documents stand in
    the order of their hashes, so that is a fair part. Adds to `refused` a sentence for each chat that cannot be used.
    """
    documents = corpus(home, settings)
    documents.check_enough()
    training, validation = (
        encode(documents, tokenizer, split, refused, progress, limit, with_end=True)
        for split, limit in (("training", tokens), ("validation", tokens // 8))
    )
    try:
        return Rows(training, context, settings.train.seed), Rows(validation, context, settings.train.seed)
    except ComigsError:
        if not refused:
            raise
        raise ComigsError(
            f"all chats were left out ({refused[0]}); add text, or choose another base: comigs-edge init --force --base FILE"
        ) from None
