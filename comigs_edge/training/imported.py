"""A specialist that starts with a LoRA that somebody else trained: a version of the adapters, from which training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comigs_edge.arrays import select
from comigs_edge.base.hparams import read_hparams
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import UNMEASURED, load, notes_of, save, versions
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import FORMS, ExpertsConfig
from comigs_edge.nn.foreign import read_foreign, start_with
from comigs_edge.planning.plan import plan_experts, resolve
from comigs_edge.training.learned import KEY
from coordinator.protocol.wire import Arrays
from quantize.gguf_file import GGUFFile


def start_specialist(home: Home, settings: Config, path: Path, number: int) -> int:
    """Makes a version in which this specialist is the LoRA at `path`, all else as it is or would begin; returns its number.

    The caller holds the home's lock. Raises `ComigsError` with the reason where it cannot be one.
    """
    if not FORMS[settings.model.expert_form].is_low_rank:
        raise ComigsError(
            f"a LoRA can start a LoRA expert, and this home has {settings.model.expert_form} ones; make a home for it with: "
            "comigs-edge init --expert-form lora"
        )
    foreign, hparams = read_foreign(path), read_hparams(GGUFFile(home.base_file))
    layout, arrays, shared, notes = _present(home, settings)
    if not 1 <= number <= layout.num_specialists:
        raise ComigsError(
            f"there is no specialist {number}, this home has {layout.num_specialists}; name one of them, or set specialists in "
            "[model] of config.toml before the first training"
        )
    role = f"specialist.{number}."
    initial = select(Adapters.initial(layout, hparams, settings.train.seed).arrays(), role)
    started = start_with(foreign, initial, hparams, layout.expert_scale)
    both = {f"{role}{name}": array for name, array in started.items()}
    shared = None if shared is None else shared | both
    return save(home.adapters, arrays | both, layout, settings.base.sha256, notes | {"imported": path.name} | UNMEASURED, shared)


def _present(home: Home, settings: Config) -> tuple[ExpertsConfig, Arrays, Arrays | None, dict[str, Any]]:
    """Layout, tensors, those without local text and notes of the newest adapters, or of what a training would begin with."""
    hparams = read_hparams(GGUFFile(home.base_file))
    if versions(home.adapters):
        saved = load(home.adapters, hparams, settings.base.sha256)
        return saved.layout, saved.arrays, saved.local_free, notes_of(saved.manifest)
    layout = plan_experts(resolve(home, settings).settings.model, hparams)
    arrays = Adapters.initial(layout, hparams, settings.train.seed).arrays()
    return layout, arrays, None, {"base_name": settings.base.name, KEY: []}
