"""What a kind of device can carry: one TOML file a kind, beside this module.

A profile holds facts of the hardware (threads, rows of a batch, context, specialists) and nothing that belongs to the
method. Each file says where its numbers come from.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent
RULES: dict[str, dict[str, Any]] = tomllib.loads((FOLDER / "rules.toml").read_text())  # of plans; no profile


class ProfileError(Exception):
    """A profile that does not exist or cannot be read; the text is one sentence."""


@dataclass(frozen=True)
class DeviceProfile:
    """What a device can carry."""

    name: str
    description: str
    threads: int  # for training and for llama.cpp; 0 = all cores that this process may use
    batch: int  # rows in a training step
    context: int  # tokens in a row
    memory: int = 0  # bytes of the device; 0: as many as this one has
    specialists: int | None = None  # local experts beside the generalist; None: by memory and text

    @property
    def usable_threads(self) -> int:
        """Threads to use here: never more than this process may run on."""
        cores = available_cores()
        return min(self.threads, cores) if self.threads else cores


def names() -> list[str]:
    """The profiles that exist."""
    return sorted({path.stem for path in FOLDER.glob("*.toml")} - {"rules"})


def load(name: str) -> DeviceProfile:
    """The profile called `name`; raises `ProfileError` naming those that exist."""
    path = FOLDER / f"{name}.toml"
    if name not in names():
        raise ProfileError(f"profile {name!r} does not exist; choose one of {', '.join(names())}")
    table: dict[str, Any] = tomllib.loads(path.read_text())
    known = {field.name for field in fields(DeviceProfile)} - {"name"}
    if not known - {"memory", "specialists"} <= table.keys() <= known:
        raise ProfileError(f"{path} must have the keys {', '.join(sorted(known))}; memory and specialists may be missing")
    return DeviceProfile(name=name, **table)


def available_cores() -> int:
    """Cores that this process may run on (its affinity, not the machine's count)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
