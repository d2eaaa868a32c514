"""Which versions of the adapters are there; without torch, so that `status` answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comigs_edge.errors import ComigsError

KEPT_VERSIONS = 3


def versions(folder: Path) -> list[int]:
    """The complete versions in `folder`, oldest first."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())


def read_manifest(folder: Path, version: int) -> dict[str, Any]:
    """The manifest of one version."""
    path = folder / f"{version:04d}" / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        return manifest
    except (OSError, ValueError) as error:
        raise ComigsError(f"{path} cannot be read ({error}); train again with: comigs-edge train --fresh") from error
