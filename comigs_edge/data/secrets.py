"""What looks like a secret in a text: keys, passwords, card and phone numbers.

Patterns find what is written as such things usually are, and no more: a number that is one is missed where it is written in
words, and one that only looks like it is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from comigs_edge.data.document import Document

Kind = Literal["key", "password", "card number", "phone number"]

_KEYS = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    r"\bAKIA[0-9A-Z]{16}\b",  # Amazon
    r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|glpat-[\w-]{20,})",  # GitHub, GitLab
    r"\b(?:sk|pk|rk)[-_][\w-]{20,}",  # OpenAI, Anthropic, Stripe
    r"\bxox[abeoprs]-[\w-]{10,}",  # Slack
    r"\bAIza[\w-]{35}",  # Google
    r"\bhf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+",  # JSON Web Tokens
    r"(?i:\b(?:api|secret|access|auth)[_ -]?(?:key|token)\b[\"']?\s*[:=]\s*\S{8,})",
)
_PASSWORDS = (
    r"(?i:\b(?:pass(?:word|wort|wd|phrase|code)|pwd|kennwort|mot de passe|contraseña|senha|wachtwoord|parola|hasło|пароль|密码)"
    r"[\"']?\s*(?:is|ist|est|es)?\s*[:=：]\s*\S{4,})",
    r"\bPIN\b[ :=]+\d{4,8}\b",
)
_PHONES = (
    r"(?<![\w+])(?:\+|00)[1-9](?:[ ./()-]{0,3}\d){7,13}(?!\d)",
    r"(?<![\w.,/-])\(?0[1-9]\d{1,3}\)?[ /-]{1,3}\d(?:[ /-]?\d){4,9}(?![\d.,/-]*\d)",
    r"(?<![\w.-])(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?!\d)",
)
_CARD = re.compile(r"(?<![\w.,-])[2-6](?:[ -]?\d){12,18}(?![\w-])")
_PATTERNS: dict[Kind, re.Pattern[str]] = {
    "key": re.compile("|".join(_KEYS)),
    "password": re.compile("|".join(_PASSWORDS)),
    "phone number": re.compile("|".join(_PHONES)),
}


@dataclass
class Found:
    """Secrets in files."""

    secrets: dict[Path, Counter[Kind]] = field(default_factory=dict)
    mended: set[Path] = field(default_factory=set)  # files whose documents with secrets were left out
    left_out: int = 0  # documents


def find_secrets(words: str) -> Counter[Kind]:
    """How many of each kind there seem to be."""
    found: Counter[Kind] = Counter({kind: sum(1 for _ in pattern.finditer(words)) for kind, pattern in _PATTERNS.items()})
    found["card number"] = sum(_is_card(match.group()) for match in _CARD.finditer(words))
    return +found


def find_in_files(
    files: MutableMapping[Path, list[Document]], leaves_out: Callable[[Path], bool]
) -> Found:  # fmt: skip
    """What each file holds; of those that `leaves_out` says, whole documents with any are taken away from `files`."""
    all_found = Found()
    for path, documents in files.items():
        found = [find_secrets(document.words) for document in documents]
        if not any(found):
            continue
        if leaves_out(path):
            files[path] = [document for document, each in zip(documents, found, strict=True) if not each]
            all_found.left_out += len(documents) - len(files[path])
            all_found.mended.add(path)
        all_found.secrets[path] = sum(found, Counter[Kind]())
    return all_found


def _is_card(number: str) -> bool:
    """By the digit that checks the others (Luhn, ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in reversed(number) if digit.isdigit()]
    return sum(digits[::2]) % 10 == (-sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10
