"""The folder `models/`: what is exported, and the quickest way to do it; `current.py` finds what is there.

personal-0003-Q8_0.gguf                    one file, layout merged
hot-base-2-2-F16.gguf                      layout hot: the base for 2 experts, 2 a token, and beside it
personal-0003-hot-F16-generalist.gguf      the adapters that llama.cpp swaps
personal-0003-hot-F16-specialists.gguf
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from comigs_edge import files
from comigs_edge.base.hparams import read_hparams
from comigs_edge.errors import ComigsError
from comigs_edge.export import hot
from comigs_edge.export.current import BASE_KEY, Exported, holds, hot_base, hot_parts
from comigs_edge.export.merged import Origin, export
from comigs_edge.export.names import exports, remove_old
from comigs_edge.export.replace import replace_experts
from comigs_edge.home.config import Config, Storage
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import load
from comigs_edge.nn.adapters import Adapters
from comigs_edge.progress import SILENT, Progress
from quantize.formats import QuantizeError
from quantize.gguf_file import GGUFFile


def newest_adapters(home: Home, settings: Config) -> tuple[Adapters, dict[str, Any]]:
    """The newest adapters and their manifest, without the base's weights."""
    hparams = read_hparams(GGUFFile(home.base_file))
    saved = load(home.adapters, hparams, settings.base.sha256)
    return Adapters.from_arrays(saved.layout, hparams, saved.arrays), saved.manifest


def export_newest(
    home: Home, settings: Config, storage: Storage, output: Path | None = None, progress: Progress = SILENT
) -> Exported:
    """Exports the newest adapters, to `models/` unless `output` is given; there the last three versions are kept.

    `output` names the file, or for the layout hot the folder. Experts beside the base's MLP are written into the newest file of
    `models/` if it differs in nothing else; it is renamed to the new version.
    """
    adapters, manifest = newest_adapters(home, settings)
    files.make_folder(home.models)
    files.remove_temporaries(home.models, older_than_seconds=3600)
    if storage.layout == "hot":
        return _export_hot(home, settings, adapters, manifest, storage.format, output or home.models)
    base, origin, target = GGUFFile(home.base_file), Origin(manifest["sha256"], settings.base.sha256), output
    if target is None:
        target = home.models / f"personal-{manifest['version']:04d}-{storage.format}.gguf"
        remove_old(home, manifest["version"])
        newest = max((path for path, name in exports(home) if name["format"] == storage.format), default=None)
        if newest is not None and not adapters.form.is_low_rank and home.seals.holds(newest):
            with suppress(QuantizeError):  # the file is damaged: it is made anew
                if replaced := replace_experts(newest, base, adapters, storage.format, target, origin):
                    home.seals.seal(target, replaced.sha256)
                    return replaced
    exported = export(base, adapters, storage.format, target, origin, progress, settings.threads("train"))
    if output is None:
        home.seals.seal(target, exported.sha256)
    return exported


def _export_hot(
    home: Home, settings: Config, adapters: Adapters, manifest: dict[str, Any], format_name: str, folder: Path
) -> Exported:
    if format_name not in hot.FORMATS:
        raise ComigsError(
            f"the layout hot stores its adapters as {' or '.join(hot.FORMATS)}, not {format_name}; the base keeps its own "
            "format: comigs-edge export --layout hot --format F16"
        )
    base, target = GGUFFile(home.base_file), hot_base(folder, adapters.layout, format_name)
    sha256 = ""  # of a base that was there already: reading it all would take longer than the swap
    if not (holds(target, BASE_KEY, settings.base.sha256) and home.seals.holds(target)):
        sha256 = hot.write_base(base, adapters, format_name, target, settings.base.sha256).sha256
        home.seals.seal(target, sha256)
    parts = hot_parts(folder, manifest["version"], adapters.layout, format_name)
    for part, path in parts.items():
        hot.write_adapter(base, adapters, part, format_name, path, manifest["sha256"])
        home.seals.seal(path, files.sha256_file(path))
    if folder == home.models:
        remove_old(home, manifest["version"])
    total = sum(path.stat().st_size for path in (target, *parts.values()))
    return Exported(target, total, sha256, {}, tuple(parts.values()))
