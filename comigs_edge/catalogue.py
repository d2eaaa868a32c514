"""Bases that can be had by name: where they are, under which licence, how large, with which SHA-256 where that is known."""

from __future__ import annotations

from dataclasses import dataclass


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
