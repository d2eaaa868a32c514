"""Versions of the adapters on disk; without torch, so that `status` answers at once.

A version is a folder of safetensors files (one for the generalist, one for each specialist, one for the router) and a
manifest, renamed into place as a whole.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
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

KEPT_VERSIONS = 5  # of different content; beside the default base each takes 13 MB of the disk
_WRITTEN = ("version", "made", "base_sha256", "layout", "sha256", "shared_sha256")  # by `save` itself
UNFINISHED = "unfinished"  # the note of what a training has left that was interrupted; it goes when the training has more
TRAINING = "training"  # the note of which training made it: a random word
_OF_ONE = ("copy_of", "imported", "measured", UNFINISHED, TRAINING)  # notes that are true of this very version alone
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
    """Writes the next version into `folder`, all files or none; returns its number. Drops old ones, see `_drop_old`.

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
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        manifest = {
            "version": version, "made": made, "base_sha256": base_sha256, "layout": asdict(layout), "sha256": digest(arrays),
            **notes,
        }  # fmt: skip
        if shared is not None:
            files.write_atomic(temporary / SHARED, wire.encode(shared))
            manifest["shared_sha256"] = digest(shared)
        files.write_atomic(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        temporary.rename(folder / f"{version:04d}")
        files.sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    with suppress(OSError):  # the new version is what counts
        _drop_old(folder)
    return version


def _drop_old(folder: Path) -> None:
    """Of the contents that were used last the first and the last version are kept: a copy has the content of another one."""
    by_content: dict[str, list[int]] = {}
    for version in versions(folder):
        content = f"damaged {version}"
        with suppress(ComigsError):
            content = read_manifest(folder, version)["sha256"]
        by_content.setdefault(content, []).append(version)
    kept = sorted(by_content.values(), key=lambda each: each[-1])[-KEPT_VERSIONS:]
    remove(folder, set(versions(folder)) - {version for each in kept for version in (each[0], each[-1])})


def remove(folder: Path, numbers: Iterable[int]) -> None:
    """Deletes versions, each whole or not at all. A fleet needs none but the newest: what it has of others is in its books."""
    for version in numbers:
        hidden = folder / f".{version:04d}"  # what a kill leaves of it goes with the next version
        if hidden.exists():
            shutil.rmtree(hidden)
        (folder / f"{version:04d}").rename(hidden)
        files.sync_folder(folder)
        shutil.rmtree(hidden)


# Of a version that nothing has measured: those of what it was made of are not its own.
UNMEASURED = {"validation_loss": None, "validation_loss_before": None}


def notes_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The notes of a version that those made of it have too."""
    return {name: value for name, value in manifest.items() if name not in _WRITTEN + _OF_ONE}


def is_left_by(folder: Path, version: int, training: str) -> bool:
    """Whether this very training was interrupted and has left this version."""
    with suppress(ComigsError):
        manifest = read_manifest(folder, version)
        return bool(training) and UNFINISHED in manifest and manifest.get(TRAINING) == training
    return False


def note_finished(folder: Path, version: int) -> None:
    """The training that left this version has ended without anything better: it is no unfinished one any more."""
    with suppress(ComigsError):
        manifest = read_manifest(folder, version)
        if manifest.pop(UNFINISHED, False):
            files.write_atomic(folder / f"{version:04d}" / "manifest.json", json.dumps(manifest, indent=1).encode())


def note_measured(folder: Path, version: int, values: dict[str, Any]) -> None:
    """Adds what was measured on a version to its manifest. It is only said: what the system refuses is left out."""
    with suppress(ComigsError):
        manifest = read_manifest(folder, version)
        measured = manifest.get("measured", {}) | values
        files.write_atomic(
            folder / f"{version:04d}" / "manifest.json", json.dumps(manifest | {"measured": measured}, indent=1).encode()
        )


class Saved(NamedTuple):
    """One version, as it was read."""

    layout: ExpertsConfig
    arrays: Arrays
    manifest: dict[str, Any]
    shared: Arrays  # the same without what local text has shaped

    @property
    def local_free(self) -> Arrays | None:
        """`shared` where it differs."""
        return None if self.shared is self.arrays else self.shared


def find(folder: Path, version: int | None = None) -> int:
    """The number of the newest version, or this one; raises `ComigsError` where it is not there."""
    numbers = versions(folder)
    if not numbers:
        raise ComigsError(
            "there is no personal model yet; make one with: comigs-edge train (without text first: comigs-edge data add FOLDER)"
        )
    if version is not None and version not in numbers:
        raise ComigsError(
            f"there is no version {version} of your model, those that are kept are {', '.join(map(str, numbers))}; "
            "see: comigs-edge models list"
        )
    return numbers[-1] if version is None else version


def load(folder: Path, hparams: HParams, base_sha256: str, version: int | None = None) -> Saved:
    """The newest version in `folder`, or the one with this number.

    Raises `ComigsError` if it is missing, if it belongs to another base, or if it is damaged.
    """
    number = find(folder, version)
    manifest = read_manifest(folder, number)
    if manifest["base_sha256"] != base_sha256:
        raise ComigsError(
            f"the adapters in {folder / f'{number:04d}'} were trained on another base ({manifest['base_sha256'][:12]}, "
            f"now {base_sha256[:12]}); bring that base back or train again with: comigs-edge train --fresh"
        )
    layout = ExpertsConfig(**manifest["layout"])
    arrays: Arrays = {}
    for path in sorted((folder / f"{number:04d}").glob("*.safetensors")):
        arrays |= wire.decode(path.read_bytes(), str(path))
    path, shared = folder / f"{number:04d}" / SHARED, arrays
    if "shared_sha256" in manifest:
        shared = wire.decode(path.read_bytes(), str(path)) if path.exists() else {}
        check_arrays(shared, layout, hparams)
    check_arrays(arrays, layout, hparams)
    if digest(arrays) != manifest["sha256"] or digest(shared) != manifest.get("shared_sha256", manifest["sha256"]):
        raise ComigsError(
            f"the adapters in {folder / f'{number:04d}'} are damaged (their SHA-256 does not match the manifest); "
            "delete that folder to return to the version before"
        )
    return Saved(layout, arrays, manifest, shared)


def use(folder: Path, hparams: HParams, base_sha256: str, version: int) -> int:
    """Makes a version the newest one, as a copy of it under the next number, unless that has its content already.

    Returns the newest one's number; raises what `load` raises.
    """
    saved, newest = load(folder, hparams, base_sha256, version), versions(folder)[-1]
    with suppress(ComigsError):  # a damaged newest one is a reason to use another
        if load(folder, hparams, base_sha256).manifest["sha256"] == saved.manifest["sha256"]:
            return newest
    of_one = {name: saved.manifest[name] for name in _OF_ONE if name in saved.manifest}
    notes = notes_of(saved.manifest) | of_one | {"copy_of": version}
    return save(folder, saved.arrays, saved.layout, base_sha256, notes, saved.local_free)


def otherwise_than_begun(differences: str, has_other_experts: bool, folder: Path, base_sha256: str) -> ComigsError:
    """Why an interrupted training cannot go on with these settings, and every way out of that.

    With the experts that are asked for a training can only begin anew; else it can go on from the newest version in `folder`.
    """
    ways = ["comigs-edge train --fresh (anew from the base)"]
    newest = versions(folder)[-1:]
    with suppress(ComigsError):  # a damaged one is none to go on from
        if newest and not has_other_experts and read_manifest(folder, newest[0])["base_sha256"] == base_sha256:
            ways.insert(0, f"comigs-edge models use {newest[0]} --drop-training (the next one goes on from that version)")
    return ComigsError(
        f"the settings ask for {differences} in the interrupted training; end it with its own settings: "
        f"comigs-edge train --resume, or give it up: {', or '.join(ways)}"
    )


def find_before(folder: Path) -> int:
    """The version before the newest one, or before the one of which that is a copy; raises `ComigsError` if there is none."""
    newest = present = find(folder)
    with suppress(ComigsError):
        present = read_manifest(folder, newest).get("copy_of", newest)
    older = [version for version in versions(folder) if version < present]
    if not older:
        copied = f", a copy of version {present}" if present != newest else ""
        raise ComigsError(f"there is no version before the one in use, which is {newest}{copied}; see: comigs-edge models list")
    return older[-1]
