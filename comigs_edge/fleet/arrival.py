"""How a generalist comes to a device: kept already, by what it adds to the one before (half the bytes), or whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.transport import Offline, Transport
from comigs_edge.progress import Progress
from coordinator.protocol import compress, wire
from coordinator.protocol.aggregate import add_change
from coordinator.protocol.errors import WireError
from coordinator.protocol.messages import Manifest
from coordinator.protocol.wire import Arrays, Shapes, Table


def bring(
    manifest: Manifest, target: Path, shapes: Shapes, kept: dict[str, str], read: Callable[[int], Arrays],
    transport: Transport, progress: Progress,
) -> int:  # fmt: skip
    """Brings a generalist to `target`; returns the bytes that came. `kept`: number -> SHA-256 of those that `read` reads.

    Whichever way, the SHA-256 is the manifest's, and the tensors are those of `shapes`. Raises what the transport raises for the
    whole generalist, and `ComigsError` where that is none.
    """
    table, whole = compress.table(shapes, "float16"), compress.table(shapes, "float32")
    if manifest.size != (size := wire.encoded_size(whole)):
        raise ComigsError(f"generalist {manifest.round} has {manifest.size:,} bytes and not {size:,}; nothing was taken over")
    try:
        for number, sha256 in kept.items():  # one that is published again
            if sha256 == manifest.sha256 and _write(read(int(number)), manifest, target):
                return 0
        if manifest.change_sha256 and manifest.change_size == wire.encoded_size(table) and str(manifest.round - 1) in kept:
            change = _change(manifest, target, table, transport, progress)
            if _write(add_change(read(manifest.round - 1), change), manifest, target):
                return manifest.change_size
    except Offline:
        raise
    except (ComigsError, WireError, OSError):
        pass  # the whole one needs nothing that is here
    transport.download(manifest, target, progress)
    try:
        wire.decode_expected(target.read_bytes(), whole, f"generalist {manifest.round}")
    except WireError as error:
        target.unlink()
        raise ComigsError(f"{error}; nothing was taken over, tell whoever runs the coordinator") from error
    return manifest.size


def _change(manifest: Manifest, target: Path, table: Table, transport: Transport, progress: Progress) -> wire.Packed:
    part = target.with_name(f".{target.name}.change")
    transport.download_change(manifest, part, progress)
    data = part.read_bytes()
    part.unlink()
    return wire.decode_expected(data, table, "the change")


def _write(arrays: Arrays, manifest: Manifest, target: Path) -> bool:
    """Whether these are the manifest's, and at `target` now."""
    data = wire.encode(arrays)
    is_right = hashlib.sha256(data).hexdigest() == manifest.sha256
    if is_right:
        files.write_atomic(target, data)
    return is_right
