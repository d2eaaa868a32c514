"""The text of virtual devices: a folder with one JSONL file a person, split and tokenised as on a real device.

Splits are by the hash of a document's content and near-duplicates are left out within a device, so what one device is tested on
no other device trains on either, unless it is worded differently. Settings are chosen on tuning text. What judges them is split
by another salt, and recipes for judging are not read without asking; their files, and no others, lie in a folder `judging`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from comigs_edge.data import documents
from comigs_edge.data.arrangement import SPLITS
from comigs_edge.data.corpus import Corpus
from comigs_edge.data.tokenizer import Encoded, Tokenizer, encode
from comigs_edge.errors import ComigsError
from comigs_edge.inference.evaluate import TestText, prepare
from comigs_edge.progress import Progress
from comigs_edge.simulate.recipe import Recipe, Size

# Shares of the documents; the paper's validation text is a fifth to a half of the training text.
TRAINING, VALIDATION = 0.6, 0.2
JUDGING = "judging"  # the salt of the split, and the folder of text that is never chosen on
TEST_CONTEXT = 512  # tokens of a window, as `comigs-edge evaluate` has them
Splits = dict[str, list[Encoded]]


@dataclass(frozen=True)
class Text:
    """One device's text."""

    training: list[Encoded]
    validation: list[Encoded]
    test: TestText

    @property
    def num_training_tokens(self) -> int:
        """Tokens that there are to train on."""
        return sum(len(each.ids) for each in self.training)


def read(
    recipe: Recipe, size: Size, folder: Path, tokenizer: Tokenizer, progress: Progress, test_context: int = TEST_CONTEXT,
    judge: bool = False,
) -> dict[str, Text]:  # fmt: skip
    """The text of every device, no longer than the size says; raises `ComigsError` where a file or a split is missing.

    With `judge` it is the judging text of the recipe, without it the tuning text, which a recipe for judging has not.
    """
    if recipe.judging and not judge:
        raise ComigsError(
            f'the text of "{recipe.about}" is kept for judging; choose settings on another recipe, then add --judge'
        )
    files = {name: find(folder, device.text, recipe.judging) for name, device in recipe.devices.items()}
    splits = {}
    for number, (name, path) in enumerate(files.items(), 1):
        splits[name] = _splits(path, tokenizer, JUDGING if judge else "")
        progress(number, len(files))
    texts = {}
    for name, device in recipe.devices.items():
        sources = list(splits) if recipe.target == "mix" else [name]
        validation, test = (
            [each for source in sources for each in limit(splits[source][split], tokens // len(sources))]
            for split, tokens in (("validation", size.validation_tokens), ("test", size.test_tokens))
        )
        training = limit(splits[name]["training"], round(size.training_tokens * device.share))
        texts[name] = Text(training, validation, prepare(test, tokenizer, test_context, size.test_tokens))
    return texts


def find(folder: Path, text: str, judging: bool = False) -> Path:
    """The file TEXT.jsonl somewhere below `folder`; for `judging` it lies in a folder `judging`, be that above, else in none."""
    folder = folder.expanduser()
    found = sorted(folder.rglob(f"{text}.jsonl"))
    paths = [path for path in found if judging == (JUDGING in (*path.absolute().parts, *path.resolve().parts))]
    if found and not paths:
        kept = "is kept for judging, and read by recipes for judging alone, with --judge; name a folder of other text"
        elsewhere = f"is not in a folder {JUDGING}, from which recipes for judging are read; move it into one"
        raise ComigsError(f"{found[0]} {elsewhere if judging else kept}")
    if len(paths) != 1:
        there = f"{len(paths)} files {text}.jsonl" if paths else f"no file {text}.jsonl"
        raise ComigsError(f"{folder} has {there} where one is needed; name a folder with one JSONL file a person")
    return paths[0]


def limit(encoded: Iterable[Encoded], tokens: int) -> list[Encoded]:
    """The first documents, `tokens` tokens in all; the last one is cut."""
    kept: list[Encoded] = []
    for each in encoded:
        if tokens <= 0:
            break
        kept.append(Encoded(each.ids[:tokens], each.scored[:tokens]))
        tokens -= len(each.ids)
    return kept


def digest(texts: dict[str, Text]) -> str:
    """SHA-256 over everything that is trained on and measured."""
    sha = hashlib.sha256()
    for name, text in texts.items():
        sha.update(repr((name, text.training, text.validation, text.test.windows)).encode())
    return sha.hexdigest()


def _splits(path: Path, tokenizer: Tokenizer, salt: str = "") -> Splits:
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder) / "documents.db", TRAINING, VALIDATION, salt)
        corpus.add(documents.read([path]))
        splits: Splits = {split: list(encode(corpus, tokenizer, split, [])) for split in SPLITS}
    for split, encoded in splits.items():
        if not encoded:
            raise ComigsError(f"{path} has no {split} text; it needs more documents, ten or so")
    return splits
