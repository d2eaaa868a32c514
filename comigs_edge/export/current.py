"""Which exported files hold the newest adapters. Without torch, which takes a second to load before a chat could begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from comigs_edge.home.config import Config, Storage
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import read_manifest, versions
from comigs_edge.nn.experts import ExpertsConfig
from quantize.formats import QuantizeError
from quantize.gguf_file import GGUFFile

SOURCE_KEY = "comigs_edge.adapters_sha256"  # which adapters an exported file holds
BASE_KEY = "comigs_edge.base_sha256"  # and which base
HOT_PARTS = ("generalist", "specialists")  # of the layout hot, a file each


@dataclass(frozen=True)
class Exported:
    """Files that were written: one, or a base and the adapters that llama.cpp adds to it."""

    path: Path
    size: int  # bytes, of all
    sha256: str  # of `path`; empty where it was there already
    formats: dict[str, int] = field(default_factory=dict)  # tensors that hold what was trained, by block format
    adapters: tuple[Path, ...] = ()


def find_current(home: Home, settings: Config, storage: Storage, tell: Callable[[str], None]) -> Exported | None:
    """The export of the newest adapters in `models/` as `storage` wants it; None if it is missing or damaged, which is told."""
    numbers = versions(home.adapters)
    if not numbers:
        return None
    manifest = read_manifest(home.adapters, numbers[-1])
    sha256 = manifest["sha256"]
    if manifest["base_sha256"] != settings.base.sha256:
        return None
    parts: tuple[Path, ...] = ()
    if storage.layout == "hot":
        layout = ExpertsConfig(**manifest["layout"])
        path = hot_base(home.models, layout, storage.format)
        parts = tuple(hot_parts(home.models, numbers[-1], layout, storage.format).values())
        is_there = holds(path, BASE_KEY, settings.base.sha256) and all(holds(part, SOURCE_KEY, sha256) for part in parts)
    else:
        path = home.models / f"personal-{numbers[-1]:04d}-{storage.format}.gguf"
        is_there = holds(path, SOURCE_KEY, sha256)
    if not is_there:
        return None
    if damaged := [each for each in (path, *parts) if not home.seals.holds(each)]:
        tell(f"{damaged[0]} is no longer what was written there; your model is exported anew from its adapters")
        return None
    return Exported(path, sum(each.stat().st_size for each in (path, *parts)), "", {}, parts)


def hot_base(folder: Path, layout: ExpertsConfig, format_name: str) -> Path:
    """The base of the layout hot, for these experts."""
    return folder / f"hot-base-{layout.num_choices}-{layout.experts_per_token}-{format_name}.gguf"


def hot_parts(folder: Path, version: int, layout: ExpertsConfig, format_name: str) -> dict[str, Path]:
    """The adapters that llama.cpp adds to it."""
    parts = HOT_PARTS if layout.num_choices > 1 else HOT_PARTS[:1]
    return {part: folder / f"personal-{version:04d}-hot-{format_name}-{part}.gguf" for part in parts}


def holds(path: Path, key: str, sha256: str) -> bool:
    """Whether a file is there and was made of what has this SHA-256."""
    try:
        return path.exists() and GGUFFile(path).metadata.get(key) == sha256
    except QuantizeError:
        return False
