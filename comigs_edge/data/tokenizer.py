"""Token ids for training and for chat, from llama.cpp's own tokenizer and the chat template of the base's file.

Both use the same functions, so a chat is tokenised exactly as the chats that were trained on. What a person wrote is
never read as a control token: only the template's own text can contain those.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from comigs_edge import llamacpp
from comigs_edge.data.arrangement import Split
from comigs_edge.data.corpus import Corpus
from comigs_edge.data.document import Document, Message
from comigs_edge.data.passages import find_passages
from comigs_edge.data.runs import NO_RUNS, Runs
from comigs_edge.data.template import CHATML, PROBE, ChatTemplate, Part
from comigs_edge.errors import ComigsError
from comigs_edge.progress import SILENT, Progress

_PARTS = 1000  # in which reading is shown: documents or tokens, whichever ends it
# A template's name of a token that ends an answer.
_END = re.compile(r"\s*(<[|｜][^<>\s]+[|｜]>|</s>|<eos>|<end_of_\w+>)")


class Encoded(NamedTuple):
    """Token ids of a document; `scored[i]` tells whether token i counts as a target."""

    ids: list[int]
    scored: list[bool]
    omits: bool = False  # whether passages that were learned elsewhere are not scored


class Tokenizer:
    """The tokenizer and chat template inside the GGUF file at `path`; `thinking` is as in `ChatTemplate`."""

    def __init__(self, path: Path, thinking: bool = False) -> None:
        self._thinking = thinking
        self._llama = llamacpp.load(path, vocab_only=True)
        self.bos, self.eos = self._llama.token_bos(), self._llama.token_eos()
        self.starts_with_bos = self._llama.tokenize(b"", add_bos=True) == [self.bos]
        self._pieces: dict[int, bytes] = {}
        self._specials = llamacpp.special_tokens(self._llama)
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._split_specials = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._text_day = datetime.fromtimestamp(path.stat().st_mtime)
        named = {name: self.piece(token).decode("utf-8", "replace") for name, token in llamacpp.named_tokens(self._llama).items()}
        self.metadata: dict[str, str] = self._llama.metadata
        self.has_template = bool(self.metadata.get("tokenizer.chat_template"))
        self.template = ChatTemplate(self.metadata.get("tokenizer.chat_template") or CHATML, named, thinking)
        self.lacking_end = self._mend_end(named)

    def _mend_end(self, named: dict[str, str]) -> str:
        """Ends answers with the vocabulary's own end where it lacks the template's, whose name is returned."""
        try:
            end = _END.match(self.template.after_answer())
        except ComigsError:
            return ""
        if end is None or end[1] in self._specials or "eos_token" not in named:
            return ""
        self.template = ChatTemplate(self.template.source.replace(end[1], named["eos_token"]), named, self._thinking)
        return end[1]

    def encode(self, document: Document, with_end: bool = False, learned: Runs = NO_RUNS) -> Encoded:
        """A text is scored whole (but for a leading BOS), of a chat the assistant's messages and their end,
        but for those with the weight 0; passages that stand in text with the runs `learned` are not.

        `with_end` puts the end of an answer behind a text too: a model that reads endless text forgets to stop.
        """
        if document.messages:
            return self.chat(document.messages, for_answer=False, learned=learned)
        ids = self._llama.tokenize(document.text.encode(), add_bos=True, special=False)  # BOS where the file wants it
        bos = int(self.starts_with_bos)
        pieces = list(_pieces(document.text, learned))
        scored = [False] * bos + self._score(ids[bos:], pieces)
        if with_end and self.eos >= 0:
            ids.append(self.eos)
            scored.append(True)
        return Encoded(ids, scored, omits=len(pieces) > 1)

    def chat(self, messages: tuple[Message, ...], for_answer: bool, learned: Runs = NO_RUNS) -> Encoded:
        """A chat in the base's template; `for_answer` ends it where the assistant's next message begins.

        Dates in training text are the base file's: they stay the same from one day to the next.
        """
        out = Encoded([], [])
        fragment: list[tuple[bytes, bool]] = []
        after_answer = omits = False
        parts = list(self._split(self.template.render(messages, for_answer, None if for_answer else self._text_day)))
        for index, (text, message) in enumerate(parts):
            special = self._specials.get(text) if message is None else None
            if special is None:
                # White space between an answer and its end belongs to the end.
                leads_to_end = not text.strip() and index + 1 < len(parts) and parts[index + 1][0] in self._specials
                after_answer = message.role == "assistant" and message.scored if message else after_answer and leads_to_end
                pieces = list(_pieces(text, learned)) if message and after_answer else [(text.encode(), after_answer)]
                fragment, omits = fragment + pieces, omits or len(pieces) > 1
                continue
            self._encode_fragment(fragment, out)
            fragment = []
            out.ids.append(special)
            out.scored.append(after_answer)  # the end of a message is part of it: the model learns to stop
            after_answer = False
        self._encode_fragment(fragment, out)
        if self.starts_with_bos and out.ids[:1] != [self.bos]:
            out.ids.insert(0, self.bos)
            out.scored.insert(0, False)
        return out._replace(omits=omits)

    def _split(self, parts: list[Part]) -> Iterator[Part]:
        """The same with the template's special tokens as parts of their own."""
        for text, message in parts:
            if message is not None:
                yield text, message
                continue
            position = 0
            for match in self._split_specials.finditer(text):
                if match.start() > position:
                    yield text[position : match.start()], None
                yield match.group(), None
                position = match.end()
            if position < len(text):
                yield text[position:], None

    def _encode_fragment(self, fragment: list[tuple[bytes, bool]], out: Encoded) -> None:
        """Appends the text between two special tokens, tokenised as one string, as llama.cpp would."""
        data = b"".join(text for text, _ in fragment)
        if not data:
            return
        ids = self._llama.tokenize(data, add_bos=False, special=False)
        out.ids.extend(ids)
        out.scored.extend(self._score(ids, fragment))

    def _score(self, ids: list[int], fragment: list[tuple[bytes, bool]]) -> list[bool]:
        """Whether each token of a fragment has a part that is scored."""
        states = {is_scored for text, is_scored in fragment if text}
        if len(states) < 2:
            return [True in states] * len(ids)
        spans = _scored_spans(fragment)
        start = sum(len(text) for text, _ in fragment) - sum(len(self.piece(token)) for token in ids)
        scored = []  # `start` is negative where the tokenizer put a space in front
        for token in ids:
            end = start + len(self.piece(token))
            scored.append(any(low < end and start < high for low, high in spans))
            start = end
        return scored

    def ends_answers(self) -> bool:
        """Whether an answer in a chat that is trained on ends with a token at which `chat` stops."""
        encoded = self.chat(PROBE, for_answer=False)
        return any(self.is_end(token) for token, scored in zip(encoded.ids, encoded.scored, strict=True) if scored)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; a control token's are its name."""
        if token not in self._pieces:
            self._pieces[token] = self._llama.detokenize([token], special=True)
        return self._pieces[token]

    def written_bytes(self, token: int) -> int:
        """Bytes of text that a token stands for; none for a control token."""
        piece = self.piece(token)
        return 0 if self._specials.get(piece.decode("utf-8", "replace")) == token else len(piece)

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return llamacpp.is_end(self._llama, token)

    def ends(self) -> frozenset[int]:
        """All such tokens."""
        return frozenset(token for token in range(self._llama.n_vocab()) if self.is_end(token))


def _pieces(text: str, learned: Runs) -> Iterator[tuple[bytes, bool]]:
    """A text in pieces, and whether each is scored: passages that were learned are not."""
    position = 0
    for start, end in find_passages(text, learned) if len(learned) else ():
        yield text[position:start].encode(), True
        yield text[start:end].encode(), False
        position = end
    yield text[position:].encode(), True


def _scored_spans(fragment: list[tuple[bytes, bool]]) -> list[tuple[int, int]]:
    spans, position = [], 0
    for text, scored in fragment:
        if scored:
            spans.append((position, position + len(text)))
        position += len(text)
    return spans


def encode(
    documents: Corpus, tokenizer: Tokenizer, split: Split, refused: list[str], progress: Progress = SILENT,
    max_tokens: float = math.inf, with_end: bool = False, after: str = "", local: bool | None = None,
    known: Collection[int] = (),
) -> Iterator[Encoded]:  # fmt: skip
    """Token ids of the documents of one split, one after the other, until there are `max_tokens`; from `after` on and without
    what is `known` as in `read`.

    What is chosen or tested on is not scored where it stands in text that was learned. `refused` gets the reason for each
    document that the chat template cannot hold.
    """
    learned = documents.learned_runs(split, local if local is False else None)
    total, tokens = documents.sizes(local)[split]["documents"], 0
    for number, document in enumerate(documents.read(split, after, local, known), 1):
        try:
            encoded = tokenizer.encode(document, with_end, learned)
        except ComigsError as error:
            refused.append(str(error))
            continue
        yield encoded
        tokens += len(encoded.ids)
        if tokens >= max_tokens:
            break
        progress(int(_PARTS * max(number / total, tokens / max_tokens)), _PARTS)
    progress(_PARTS, _PARTS)
