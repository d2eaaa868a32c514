"""What a training reads: rows of the home's text, shared and local, and the base's ordinary text."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from itertools import chain

from comigs_edge.data.tokenizer import Tokenizer, encode
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home, corpus
from comigs_edge.progress import Progress
from comigs_edge.training.batches import Rows
from comigs_edge.training.ordinary import TEST_SHARE, OrdinaryText, Part
from comigs_edge.training.passage import MOST_NEW, Passage

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
    tokens: int = TOKENS, passage: Passage = Passage(), known: Collection[int] = (), most_new: int = 0,
) -> tuple[Rows, Rows, Passage]:  # fmt: skip
    """Training and validation rows, of `context` tokens, of the home's shared text; raises `ComigsError` if there is too little.

    Of long text they have `tokens` tokens of training text, from where `passage` begins, and an eighth as many for validation,
    always the first; documents stand in the order of their hashes, so that is a fair part. What is not among the `known`
    documents, if there are any, is new, wherever it stands, and read first, in at most `most_new` rows; new text that takes more,
    or is half of all, is nothing special. The third is what was read. Adds to `refused` a sentence for each chat that cannot be
    used.
    """
    documents = corpus(home, settings)
    documents.check_enough()
    seed, after = settings.train.seed, passage.start
    encoded = encode(documents, tokenizer, "training", refused, progress, tokens, with_end=True, after=after, local=False)
    chosen = encode(documents, tokenizer, "validation", refused, progress, tokens // 8, with_end=True, local=False)
    new = encode(documents, tokenizer, "training", [], max_tokens=tokens, with_end=True, local=False, known=known)
    try:
        training = Rows(encoded, context, seed, passage.first_row, new if known else ())
        reads = passage.new or math.ceil(settings.train.passes * training.num_new)  # a training keeps what it began with
        # What a training began with may be gone when it is resumed.
        if 0 < training.num_new < MOST_NEW * len(training) and reads <= most_new:
            training.new_reads = reads
        end = documents.hash_of("training", after, training.num_documents + len(refused))  # validation text is not read yet
        passage = replace(passage, end=end, rows=len(training), new=training.new_reads)
        return training, Rows(chosen, context, seed), passage
    except ComigsError:
        if not refused:
            raise
        raise ComigsError(
            f"all chats were left out ({refused[0]}); add text, or choose another base: comigs-edge init --force --base FILE"
        ) from None


def read_local(
    home: Home, settings: Config, context: int, tokenizer: Tokenizer, refused: list[str], progress: Progress
) -> tuple[Rows, Rows] | None:  # fmt: skip
    """Rows of the local training text, and of all validation text; None where there is no local text to learn from."""
    documents, seed = corpus(home, settings), settings.train.seed
    if not documents.sizes(local=True)["training"]["documents"]:
        return None
    chosen = (
        encode(documents, tokenizer, "validation", refused, progress, TOKENS // 16, with_end=True, local=local)
        for local in (False, True)
    )
    encoded = encode(documents, tokenizer, "training", refused, progress, TOKENS, with_end=True, local=True)
    try:
        return Rows(encoded, context, seed), Rows(chain.from_iterable(chosen), context, seed)
    except ComigsError:  # the base's template can hold none of these chats
        return None
