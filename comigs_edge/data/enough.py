"""Whether there is text enough for a training, and what is missing otherwise."""

from __future__ import annotations

from collections.abc import Mapping

from comigs_edge.data.arrangement import SPLITS

MIN_TRAINING_BYTES = 4000  # about a thousand tokens, one step of the default batch


def find_missing(sizes: Mapping[str, Mapping[str, int]], learned: int, has_local: bool) -> str | None:
    """What a training needs and shared text of these sizes has not; None if it is enough.

    `learned` documents are left out because they stand in training text.
    """
    documents, trained = sum(size["documents"] for size in sizes.values()), sizes["training"]["bytes"]
    empty = " and ".join(split for split in SPLITS if not sizes[split]["documents"])
    if not empty and trained >= MIN_TRAINING_BYTES:
        return None
    if learned and trained >= MIN_TRAINING_BYTES:
        return (
            f"{empty} would be empty: {learned} documents for choosing or testing stand in training text and "
            "are left out; add other text: comigs-edge data add PATH"
        )
    wanted = [f"{len(SPLITS)} documents"] * (documents < len(SPLITS))
    wanted += [f"{MIN_TRAINING_BYTES:,} bytes of training text"] * (trained < MIN_TRAINING_BYTES)
    if not wanted:
        return (
            f"{empty} would be empty: the {documents} documents are too much alike to be learned and tested on apart; "
            "add other text: comigs-edge data add PATH"
        )
    beside = " beside local text, of which the generalist learns nothing" if has_local else ""
    return (
        f"{documents} documents with {trained:,} bytes of training text are too little{beside}; at least "
        f"{' and '.join(wanted)} are needed: comigs-edge data add PATH"
    )
