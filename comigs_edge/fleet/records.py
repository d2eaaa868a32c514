"""Files of named arrays with a few facts: a safetensors file in which the facts are JSON, as the bytes of one more tensor."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse

from comigs_edge import files
from comigs_edge.errors import ComigsError
from coordinator.protocol.wire import pieces

_FACTS = "facts"


def write_record(path: Path, arrays: dict[str, Any], facts: dict[str, Any]) -> None:
    """Replaces the file as a whole."""
    tensors = {**arrays, _FACTS: np.frombuffer(json.dumps(facts).encode(), np.uint8)}
    with files.atomic_writer(path) as file:
        file.writelines(pieces(tensors))


def read_record(path: Path, kind: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and facts; raises `ComigsError` where the file is damaged or gone."""
    try:
        tensors = parse(path.read_bytes())
        facts = known(json.loads(tensors.pop(_FACTS).tobytes()), kind)
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise ComigsError(
            f"{path} is gone" if isinstance(error, FileNotFoundError) else f"{path} is damaged ({error})"
        ) from error
    return tensors, facts


def known(facts: dict[str, Any], kind: type[Any]) -> dict[str, Any]:
    """The facts that are fields of a dataclass: a later version may have written more."""
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in facts.items() if name in names}
