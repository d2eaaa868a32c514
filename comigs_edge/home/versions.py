"""Versions of the adapters on disk; without torch, so that `status` answers at once.

A version is a folder of safetensors files (one for the generalist, one for each specialist, one for the router) and a
manifest, renamed into place as a whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from comigs_edge import files
from comigs_edge.arrays import digest
from comigs_edge.base.hparams import HParams
from comigs_edge.errors import ComigsError
from comigs_edge.nn.experts import ExpertsConfig, check_arrays, roles
from coordinator.protocol import wire
from coordinator.protocol.wire import Arrays

KEPT_VERSIONS = 3
SHARED = "shared.tensors"  # beside the adapters where local text has shaped them: safetensors


def versions(folder: Path) -> list[int]:
    """The complete versions in `folder`, oldest first."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())


def read_manifest(folder: Path, version: int) -> dict[str, Any]:
    """The manifest of one version."""
    path = folder / f"{version:04d}" / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if missing := {"base_sha256", "layout", "sha256"} - dict(manifest).keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        return manifest
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise ComigsError(
            f"{path} cannot be read ({error}); delete the folder {path.parent} to return to the version before"
        ) from error


def save(
    folder: Path, arrays: Arrays, layout: ExpertsConfig, base_sha256: str, notes: dict[str, Any], shared: Arrays | None = None
) -> int:  # fmt: skip
    """Writes the next version into `folder`, all files or none; returns its number. Keeps the last three.

    `shared`: the same adapters without what local text has shaped, if it has; a training further begins with those.
    """
    files.make_folder(folder)
    files.remove_temporaries(folder)
    version = max(versions(folder), default=0) + 1
    temporary = folder / f".{version:04d}"
    try:
        temporary.mkdir(mode=0o700)
        for role in [*roles(layout), "router"]:
            part = {name: array for name, array in arrays.items() if name.startswith(f"{role}.")}
            if part:
                files.write_atomic(temporary / f"{role}.safetensors", wire.encode(part))
        manifest = {"version": version, "base_sha256": base_sha256, "layout": asdict(layout), "sha256": digest(arrays), **notes}
        if shared is not None:
            files.write_atomic(temporary / SHARED, wire.encode(shared))
            manifest["shared_sha256"] = digest(shared)
        files.write_atomic(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        temporary.rename(folder / f"{version:04d}")
        files.sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in versions(folder)[:-KEPT_VERSIONS]:
        shutil.rmtree(folder / f"{old:04d}", ignore_errors=True)  # the new version is what counts
    return version


class Saved(NamedTuple):
    """One version, as it was read."""

    layout: ExpertsConfig
    arrays: Arrays
    manifest: dict[str, Any]
    shared: Arrays  # the same without what local text has shaped

    @property
    def notes(self) -> dict[str, Any]:
        """What the manifest says beside what `save` itself writes."""
        written = ("version", "base_sha256", "layout", "sha256", "shared_sha256")
        return {name: value for name, value in self.manifest.items() if name not in written}


def load(folder: Path, hparams: HParams, base_sha256: str) -> Saved:
    """The newest version in `folder`.

    Raises `ComigsError` if it is missing, if it belongs to another base, or if it is damaged.
    """
    numbers = versions(folder)
    if not numbers:
        raise ComigsError("there is no personal model yet; make one with: comigs-edge train")
    manifest = read_manifest(folder, numbers[-1])
    if manifest["base_sha256"] != base_sha256:
        raise ComigsError(
            f"the adapters in {folder} were trained on another base ({manifest['base_sha256'][:12]}, "
            f"now {base_sha256[:12]}); bring that base back or train again with: comigs-edge train --fresh"
        )
    layout = ExpertsConfig(**manifest["layout"])
    arrays: Arrays = {}
    for path in sorted((folder / f"{numbers[-1]:04d}").glob("*.safetensors")):
        arrays |= wire.decode(path.read_bytes(), str(path))
    path, shared = folder / f"{numbers[-1]:04d}" / SHARED, arrays
    if "shared_sha256" in manifest:
        shared = wire.decode(path.read_bytes(), str(path)) if path.exists() else {}
        check_arrays(shared, layout, hparams)
    check_arrays(arrays, layout, hparams)
    if digest(arrays) != manifest["sha256"] or digest(shared) != manifest.get("shared_sha256", manifest["sha256"]):
        raise ComigsError(
            f"the adapters in {folder / f'{numbers[-1]:04d}'} are damaged (their SHA-256 does not match the manifest); "
            "delete that folder to return to the version before"
        )
    return Saved(layout, arrays, manifest, shared)
