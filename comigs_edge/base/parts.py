"""A GGUF file in parts (`NAME-00001-of-00003.gguf`, as llama-gguf-split writes them) becomes one file."""

from __future__ import annotations

import re
from pathlib import Path

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.progress import SILENT, Progress, count_up
from quantize.gguf_file import GGUFFile
from quantize.gguf_writer import metadata_with, plan_copy, total_size, write

_NAME = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<count>\d{5})(?P<ending>\.gguf|\.safetensors)")


def is_part(path: Path) -> bool:
    """Whether the file at `path` is one of several that are a model together."""
    return path.is_file() and GGUFFile(path).count("split.count", 1) > 1


def numbered(name: str) -> list[str]:
    """The names of all parts of the model of which a file with this name is one; none where the name is no part's."""
    if (match := _NAME.fullmatch(name)) is None:
        return []
    return [f"{match['name']}-{number:05}-of-{match['count']}{match['ending']}" for number in range(1, int(match["count"]) + 1)]


def join(path: Path, output: Path, progress: Progress = SILENT) -> None:
    """Writes the model of which `path` is any part to `output`, whole or not at all; all parts lie in one folder.

    Raises `ComigsError` naming the parts that are missing.
    """
    parts = [GGUFFile(each) for each in _paths(path)]
    plans = [plan_copy(part, name) for part in parts for name in part.tensors]
    expected = parts[0].count("split.tensors.count", len(plans))
    if len(plans) != expected:
        raise ComigsError(f"the parts of {path} hold {len(plans)} tensors and not {expected}; get them all again")
    first = parts[0]
    for key in [key for key in first.metadata_bytes if key.startswith(("split.", "general.alignment"))]:
        del first.metadata_bytes[key]
    metadata, size = metadata_with(first, {}), total_size(plans)
    with files.atomic_writer(output, size + sum(map(len, metadata))) as file:
        write(file, metadata, plans, count_up(progress, size))


def _paths(path: Path) -> list[Path]:
    names = numbered(path.name)
    if not names:
        raise ComigsError(f"{path} is one part of a model; give the parts their names back, like model-00001-of-00003.gguf")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise ComigsError(f"{path} is one part of a model, and {', '.join(missing)} is missing beside it; get all parts")
    return [path.parent / name for name in names]
