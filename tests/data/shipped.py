"""The chat templates that llama.cpp ships, a vocabulary for each, and what transformers makes of them."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

import gguf
import platformdirs
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import vocabulary

_TOKEN = re.compile(
    r"<\|[^<>|\s]{1,40}\|?>|<[a-z_]+\|>|<｜[^<>｜]{1,40}｜>|\[/?[A-Z_]{3,20}\]|\[gMASK\]|<SPECIAL_\d+>|\[e~\[|\]~b\]|\]~!b\[|\[\|[a-z]+\|\]"
    r"|</?(?:s|unk|bos|eos|pad|sop|start_of_turn|end_of_turn|end_of_sentence|beginning_of_sentence|seed:\w+|think|assistant|user|sep|channel)>"
)
_IN_TEXT = {"<think>", "</think>"}  # tokens that a person's text may hold


def shipped_templates() -> dict[str, str]:
    """Name -> template, of the source of the llama-cpp-python that is installed; skips where that cannot be had."""
    wanted = f"llama-cpp-python=={version('llama-cpp-python')}"
    folder = platformdirs.user_cache_path("comigs-edge-tests") / wanted
    archive = next(folder.glob("*.tar.gz"), None)
    if archive is None:
        pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", wanted, "--dest", folder)
        try:
            done = subprocess.run(pip, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"the source of {wanted} cannot be downloaded: {error}")
        archive = next(folder.glob("*.tar.gz"), None)
        if archive is None:
            pytest.skip(f"the source of {wanted} cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(archive) as source:
        files = [member for member in source if re.search(r"models/templates/[^/]+\.jinja$", member.name)]
        return {Path(member.name).stem: source.extractfile(member).read().decode() for member in files}


@cache
def _letters() -> tuple[list[str], list[tuple[str, str]]]:
    tokens, merges = vocabulary()
    return tokens[3:], [tuple(merge.split()) for merge in merges]


class Reference:
    """One template with a vocabulary that has its special tokens, as a file for llama.cpp and in transformers."""

    def __init__(self, template: str, path: Path) -> None:
        specials = list(dict.fromkeys(["<s>", "</s>", "<unk>", *_TOKEN.findall(template)]))
        letters, merges = _letters()
        self.specials, self.template = specials, template
        tokens = list(dict.fromkeys(specials + letters))
        self._write(path, tokens, merges)
        model = tokenizers.models.BPE({token: index for index, token in enumerate(tokens)}, merges)
        fast = tokenizers.Tokenizer(model)
        steps = [tokenizers.pre_tokenizers.Digits(True), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
        fast.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
        fast.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in specials])
        names = {"bos_token": "<s>", "eos_token": "</s>"}
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, chat_template=template, **names)

    def _write(self, path: Path, tokens: list[str], merges: list[tuple[str, str]]) -> None:
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_context_length(512)
        writer.add_embedding_length(64)
        writer.add_feed_forward_length(96)
        writer.add_head_count(4)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(len(tokens))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        kinds = [gguf.TokenType.USER_DEFINED if token in _IN_TEXT else gguf.TokenType.CONTROL for token in self.specials]
        writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(tokens) - len(kinds)))
        writer.add_token_merges([" ".join(merge) for merge in merges])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_add_bos_token(False)
        writer.add_chat_template(self.template)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def text(self, chat: list[dict[str, str]], for_answer: bool, thinking: bool = False) -> str | None:
        """transformers' text; None where the template refuses the chat."""
        for tools in (None, []):  # no tools; templates that go through them anyway want an empty list
            try:
                return self.tokenizer.apply_chat_template(
                    chat, tools, tokenize=False, add_generation_prompt=for_answer, enable_thinking=thinking
                )
            except Exception:
                continue
        return None

    def ids(self, text: str) -> list[int]:
        """Token ids of a text with its special tokens, from the tokenizers library."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def scored(self, text: str, chat: list[dict[str, str]]) -> list[bool]:
        """Which tokens of the text the assistant said, by a search in it: answers, and the end behind each."""
        end = "|".join(map(re.escape, sorted(self.specials, key=len, reverse=True)))
        spans, position = [], 0
        for answer in (message["content"] for message in chat if message["role"] == "assistant"):
            at = text.find(answer, position)
            if answer and at >= 0:
                position = at + len(answer)
                behind = re.compile(rf"(?:\s*(?:{end}))?").match(text, position)
                spans.append((at, behind.end()))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [any(low < end and start < high for low, high in spans) for start, end in encoded["offset_mapping"]]
