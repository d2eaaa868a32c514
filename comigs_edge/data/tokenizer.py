"""Token ids for training and for chat, from llama.cpp's own tokenizer and the chat template of the base's file.

Both use the same functions, so a chat is tokenised exactly as the chats that were trained on. What a person wrote is
never read as a control token: only the template's own text can contain those.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jinja2
import jinja2.sandbox

from comigs_edge import llamacpp
from comigs_edge.data.corpus import Corpus
from comigs_edge.data.documents import Document, Message
from comigs_edge.errors import ComigsError
from comigs_edge.progress import SILENT, Progress

# For a base without a template: ChatML, which llama.cpp falls back to as well.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PLACE = re.compile("\ue000(\\d+)\ue001")  # stands for a message's content while the template is rendered


class Encoded(NamedTuple):
    """Token ids of a document; `scored[i]` tells whether token i counts as a target."""

    ids: list[int]
    scored: list[bool]


class Tokenizer:
    """The tokenizer and chat template inside the GGUF file at `path`."""

    def __init__(self, path: Path) -> None:
        self._llama = llamacpp.load(path, vocab_only=True)
        metadata = self._llama.metadata
        self.bos, self.eos = self._llama.token_bos(), self._llama.token_eos()
        self.starts_with_bos = self._llama.tokenize(b"", add_bos=True) == [self.bos]
        self._pieces: dict[int, bytes] = {}
        self._specials = llamacpp.special_tokens(self._llama)
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._split_specials = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _template_error
        try:
            self._template = environment.from_string(metadata.get("tokenizer.chat_template") or CHATML)
        except jinja2.TemplateError as error:
            raise ComigsError(f"the chat template in {path} cannot be read ({error}); choose another base") from error

    def encode(self, document: Document) -> Encoded:
        """A text is scored whole (but for a leading BOS), of a chat the assistant's messages and their end,
        but for those with the weight 0."""
        if document.messages:
            return self.chat(document.messages, for_answer=False)
        ids = self._llama.tokenize(document.text.encode(), add_bos=True, special=False)  # BOS where the file wants it
        return Encoded(ids, [not (self.starts_with_bos and index == 0) for index in range(len(ids))])

    def chat(self, messages: tuple[Message, ...], for_answer: bool) -> Encoded:
        """A chat in the base's template; `for_answer` ends it where the assistant's next message begins."""
        places = [{"role": m.role, "content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
        try:
            rendered = self._template.render(
                messages=places, add_generation_prompt=for_answer, bos_token=self.piece(self.bos).decode(),
                eos_token=self.piece(self.eos).decode(),
            )  # fmt: skip
        except jinja2.TemplateError as error:
            raise ComigsError(f"the base's chat template refuses this chat: {error}") from error
        out = Encoded([], [])
        fragment: list[tuple[bytes, bool]] = []
        after_answer = False
        for text, message in self._parts(rendered, messages):
            special = self._specials.get(text) if message is None else None
            if special is None:
                after_answer = message is not None and message.role == "assistant" and message.scored
                fragment.append((text.encode(), after_answer))
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
        return out

    def _parts(self, rendered: str, messages: tuple[Message, ...]) -> list[tuple[str, Message | None]]:
        """The rendered chat in pieces: special tokens and other text of the template, and the messages' contents."""
        parts: list[tuple[str, Message | None]] = []
        for index, piece in enumerate(_PLACE.split(rendered)):
            if index % 2:
                message = messages[int(piece)]
                parts.append((message.content, message))
                continue
            position = 0
            for match in self._split_specials.finditer(piece):
                parts += [(piece[position : match.start()], None), (match.group(), None)]
                position = match.end()
            parts.append((piece[position:], None))
        return [part for part in parts if part[0]]

    def _encode_fragment(self, fragment: list[tuple[bytes, bool]], out: Encoded) -> None:
        """Appends the text between two special tokens, tokenised as one string, as llama.cpp would."""
        data = b"".join(text for text, _ in fragment)
        if not data:
            return
        ids = self._llama.tokenize(data, add_bos=False, special=False)
        ends = _scored_spans(fragment)
        if not ends:
            out.ids.extend(ids)
            out.scored.extend([False] * len(ids))
            return
        position = sum(len(self.piece(token)) for token in ids)
        start = len(data) - position  # negative where the tokenizer put a space in front
        for token in ids:
            end = start + len(self.piece(token))
            out.ids.append(token)
            out.scored.append(any(low < end and start < high for low, high in ends))
            start = end

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


def _scored_spans(fragment: list[tuple[bytes, bool]]) -> list[tuple[int, int]]:
    spans, position = [], 0
    for text, scored in fragment:
        if scored:
            spans.append((position, position + len(text)))
        position += len(text)
    return spans


def _template_error(message: str) -> None:
    raise jinja2.TemplateError(message)


def encode(
    documents: Corpus, tokenizer: Tokenizer, split: str, refused: list[str], progress: Progress = SILENT,
    max_tokens: float = math.inf,
) -> Iterator[Encoded]:  # fmt: skip
    """Token ids of the documents of one split, one after the other, until there are `max_tokens`.

    `refused` gets the reason for each that the chat template cannot hold.
    """
    total, tokens = documents.sizes()[split]["documents"], 0
    for number, document in enumerate(documents.read(split), 1):
        try:
            encoded = tokenizer.encode(document)
        except ComigsError as error:
            refused.append(str(error))
            continue
        yield encoded
        tokens += len(encoded.ids)
        if tokens >= max_tokens:
            break
        progress(number, total)
    progress(total, total)
