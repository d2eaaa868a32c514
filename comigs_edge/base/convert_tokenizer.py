"""The tokenizer of a Hugging Face folder, as GGUF metadata: `tokenizer.model` (sentencepiece) or `tokenizer.json` (byte-level, or
pieces like sentencepiece's).

llama.cpp splits text into words by a rule that the file names (`tokenizer.ggml.pre`). A `tokenizer.json` whose rule is not
one of those that are known here is refused: a wrong one would give other token ids than the base was trained on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf

from comigs_edge.errors import ComigsError

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The regular expression that splits text -> its name in llama.cpp (`llama-vocab.cpp`).
_RULES = {_LETTERS + r"\p{N}{1,3}" + _REST: "llama-bpe", _LETTERS + r"\p{N}" + _REST: "qwen2"}
_SPACE = "▁"  # stands for a space in sentencepiece's pieces
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = (
    gguf.TokenType.NORMAL, gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED,
    gguf.TokenType.UNUSED, gguf.TokenType.BYTE,
)  # fmt: skip


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, vocab_size: int) -> None:
    """Adds the tokenizer and the chat template; raises `ComigsError` for a tokenizer that llama.cpp does not have."""
    pieces, content = folder / "tokenizer.model", _content(folder / "tokenizer.json")
    has_prefix = _settings(folder).get("add_prefix_space") is not False  # null means the default
    if pieces.exists() and not (content and _is_no_sentencepiece(pieces)):
        has_pieces, tokens = True, _sentencepiece(pieces)
    elif content and (prefix := _replaces_spaces(content)) is not None:
        has_pieces, tokens, has_prefix = True, _merged_pieces(content), prefix
    else:
        has_pieces, tokens = False, _byte_level(writer, content, folder)
    for number, (text, special) in _added_tokens(folder).items():
        tokens[number] = (text, -1000.0, _CONTROL if special else _USER_DEFINED)
    if not tokens or max(tokens) >= vocab_size:
        raise ComigsError(f"{folder} has {max(tokens, default=-1) + 1:,} tokens and a model for {vocab_size:,}; get it again")
    every = [tokens.get(number, (f"[PAD{number}]", -1000.0, _UNUSED)) for number in range(vocab_size)]
    if has_pieces:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([score for _, score, _ in every])
        writer.add_add_space_prefix(has_prefix)
    writer.add_token_list([text for text, _, _ in every])
    writer.add_token_types([kind for _, _, kind in every])
    special = gguf.SpecialVocab(folder, load_merges=not has_pieces, n_vocab=vocab_size)
    if isinstance(special.chat_template, list):  # several templates, by name
        named = {each["name"]: each["template"] for each in special.chat_template}
        special.chat_template = named.get("default", next(iter(named.values()), None))
    if (folder / "chat_template.jinja").is_file():  # goes before that of tokenizer_config.json, as in transformers
        special.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    special.add_to_gguf(writer, quiet=True)


Tokens = dict[int, tuple[str, float, int]]  # id -> text, score, type


def _sentencepiece(path: Path) -> Tokens:
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ComigsError(f"{path} cannot be read as a sentencepiece model ({error}); get the file again") from error
    tokens: Tokens = {}
    for number in range(model.vocab_size()):
        kinds = ((model.is_unknown, _UNKNOWN), (model.is_control, _CONTROL), (model.is_unused, _UNUSED), (model.is_byte, _BYTE))
        kind = next((kind for test, kind in kinds if test(number)), _NORMAL)
        tokens[number] = (model.id_to_piece(number), model.get_score(number), kind)
    return tokens


def _is_no_sentencepiece(path: Path) -> bool:
    """Whether the file is something else by that name, like tiktoken's lists."""
    import sentencepiece

    try:
        sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        return True
    return False


def _content(path: Path) -> dict[str, Any] | None:
    """What `tokenizer.json` says, checked as far as it is used here; None where there is none."""
    if not path.exists():
        return None
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        kind = content["model"].get("type", "BPE")
        if kind != "BPE":
            raise ComigsError(f"{path} is a {kind} tokenizer, which these bases do not have; use a GGUF file of this base")
        if not isinstance(content["model"]["vocab"], dict):
            raise TypeError("its vocabulary is no table")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ComigsError(f"{path} cannot be read as a tokenizer ({error}); get the file again") from error
    return content


def _replaces_spaces(content: dict[str, Any]) -> bool | None:
    """Whether a space is put in front, of a tokenizer that works like sentencepiece's; None for another kind."""
    if not content["model"].get("byte_fallback"):
        return None
    normalizer, before = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if before.get("type") == "Metaspace" and before.get("replacement", _SPACE) == _SPACE and not steps:
        return bool(before.get("prepend_scheme", "always") != "never")
    kinds = [step.get("type") for step in steps]
    if before or kinds not in (["Prepend", "Replace"], ["Replace"]):
        return None
    replaces = steps[-1].get("pattern", {}).get("String") == " " and steps[-1].get("content") == _SPACE
    prepends = len(steps) == 2 and steps[0].get("prepend") == _SPACE
    return prepends if replaces and prepends == (len(steps) == 2) else None


def _merged_pieces(content: dict[str, Any]) -> Tokens:
    """The pieces with sentencepiece's scores: it joins what stands first in the list of merges first."""
    model = content["model"]
    order: dict[str, int] = {}
    for merge in model.get("merges", []):
        pair = merge if isinstance(merge, list) else merge.split(" ")
        order.setdefault("".join(pair), len(order))
    tokens: Tokens = {}
    for text, number in model["vocab"].items():
        kind = _BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", text) else _UNKNOWN if text == model.get("unk_token") else _NORMAL
        tokens[number] = (text, -float(order.get(text, len(order))), kind)
    return tokens


def _byte_level(writer: gguf.GGUFWriter, content: dict[str, Any] | None, folder: Path) -> Tokens:
    if content is None:
        raise ComigsError(f"{folder} has neither tokenizer.model nor tokenizer.json; get the whole folder")
    rule = _rule(content.get("pre_tokenizer"))
    if rule is None:
        raise ComigsError(
            f"{folder / 'tokenizer.json'} splits text by a rule that is not one of "
            f"{', '.join(['gpt-2', 'smollm', *_RULES.values()])}; use a GGUF file of this base, which names its own rule"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    return {number: (text, 0.0, _NORMAL) for text, number in content["model"]["vocab"].items()}


def _rule(pre_tokenizer: Any) -> str | None:
    """llama.cpp's name of the rule; None if it is not known."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer]) or []
    kinds = [step.get("type") for step in steps if step]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    if kinds == ["Split", "ByteLevel"]:
        return _RULES.get(steps[0].get("pattern", {}).get("Regex"))
    if not steps[-1].get("use_regex", True):
        return None
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    return "gpt-2" if kinds == ["ByteLevel"] else None


def _added_tokens(folder: Path) -> dict[int, tuple[str, bool]]:
    """Tokens beside the vocabulary: id -> text, and whether it is a control token."""
    tokens: dict[int, tuple[str, bool]] = {}
    path = folder / "tokenizer.json"
    if path.exists():
        for token in json.loads(path.read_text(encoding="utf-8")).get("added_tokens", []):
            tokens[int(token["id"])] = (token["content"], bool(token.get("special")))
    for number, token in _settings(folder).get("added_tokens_decoder", {}).items():
        tokens[int(number)] = (token["content"], bool(token.get("special")))
    return tokens


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
