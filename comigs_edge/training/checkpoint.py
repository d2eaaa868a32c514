"""The state of a training on disk: two generations, each one file whose name carries its SHA-256.

A file is written beside the others and renamed, so a kill or a power cut leaves the newest complete generation; one
whose bytes do not match its name is skipped with a warning.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as parse

from comigs_edge import files
from coordinator.protocol.wire import Arrays, pieces

GENERATIONS = 2
_NAME = re.compile(r"checkpoint-(\d{8})-([0-9a-f]{64})\.safetensors")
_PROGRESS = "progress"  # JSON, as bytes in a tensor, so that one hash covers everything


def save(folder: Path, arrays: Arrays, progress: dict[str, Any]) -> None:
    """Writes the next generation and drops all but the last two; raises `ComigsError` if the system refuses."""
    tensors: dict[str, Any] = {**arrays, _PROGRESS: np.frombuffer(json.dumps(progress).encode(), np.uint8)}
    data, digest = pieces(tensors), hashlib.sha256()
    for piece in data:
        digest.update(piece)
    generations = _generations(folder)
    number = generations[-1][0] + 1 if generations else 1
    files.remove_temporaries(folder)
    name = f"checkpoint-{number:08d}-{digest.hexdigest()}.safetensors"
    with files.atomic_writer(folder / name) as file:
        file.writelines(data)
    for _, path in _generations(folder)[:-GENERATIONS]:
        path.unlink()


def load(folder: Path) -> tuple[Arrays, dict[str, Any], list[str]] | None:
    """Arrays and progress of the newest sound generation, and a warning for each that was skipped; None without any.

    Both are empty if no generation is sound.
    """
    warnings: list[str] = []
    for _, path in reversed(_generations(folder)):
        data = path.read_bytes()
        match = _NAME.fullmatch(path.name)
        if match and hashlib.sha256(data).hexdigest() == match[2]:
            tensors = parse(data)
            progress = json.loads(tensors.pop(_PROGRESS).tobytes())
            return tensors, progress, warnings
        warnings.append(f"the checkpoint {path.name[:19]} is damaged and was passed over")
    return None if not warnings else ({}, {}, warnings)


def clear(folder: Path) -> None:
    """Deletes all generations."""
    for _, path in _generations(folder):
        path.unlink()


def _generations(folder: Path) -> list[tuple[int, Path]]:
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match)
