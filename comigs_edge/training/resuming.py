"""What an interrupted training is to do: as its checkpoint says, if the settings still ask for that."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path

from comigs_edge.base.hparams import HParams
from comigs_edge.errors import EXPECTED, ComigsError
from comigs_edge.home.config import Config
from comigs_edge.home.versions import TRAINING, Saved, is_left_by, load, otherwise_than_begun, versions
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.training.checkpoint import Progress
from comigs_edge.training.closing import PROGRESS
from comigs_edge.training.schedule import Schedule, make_schedule
from coordinator.protocol.wire import Arrays

FROM_VERSION = "from_version"  # in checkpoints: the version that a training goes on from


def read_course(
    progress: Progress, settings: Config, batch: int, steps: int | None, experts: ExpertsConfig, adapters: Path
) -> tuple[Schedule, ExpertsConfig]:  # fmt: skip
    """Schedule and layout of the saved training; raises `ComigsError` where the settings, or `experts` by them, are otherwise.

    `adapters`: the folder of versions, from which another training could go on.
    """
    if progress["base_sha256"] != settings.base.sha256:
        raise ComigsError("the interrupted training belongs to another base; start anew with: comigs-edge train --fresh")
    if unknown := progress["schedule"].keys() - {field.name for field in fields(Schedule)}:
        raise ComigsError(
            f"a newer version began the interrupted training (it has {', '.join(sorted(unknown))}); go on with it, or start "
            "anew with: comigs-edge train --fresh"
        )
    schedule, layout = Schedule(**progress["schedule"]), ExpertsConfig(**progress["layout"])
    is_closing = PROGRESS in progress and settings.has_zero_expert
    asked = schedule.keep_course(make_schedule(settings, batch, schedule.steps if steps is None else steps), is_closing)
    if not is_closing:  # what comes at the end can still be chosen, and was not there in earlier versions
        schedule = replace(schedule, closing_steps=asked.closing_steps)
    wanted = asdict(asked) | asdict(experts)
    saved = asdict(schedule) | asdict(layout)
    if wanted != saved:
        raise otherwise_than_begun(differences(wanted, saved), experts != layout, adapters, settings.base.sha256)
    return schedule, layout


def find_version(folder: Path, progress: Progress) -> int | None:
    """The version of those in the `folder` that a training alone goes on from, by its `progress`; None: from the base."""
    if FROM_VERSION in progress or not Schedule(**progress["schedule"]).goes_on:
        return progress.get(FROM_VERSION)
    return next(iter(_before(folder, progress)), None)  # an earlier version of the program did not say it


def find_start(
    folder: Path, hparams: HParams, settings: Config, progress: Progress, version: int | None
) -> Arrays:  # fmt: skip
    """What a training alone, from a `version` or the base, has to beat: the newest version but its own, or the base."""
    layout = ExpertsConfig(**progress["layout"])
    for number in _before(folder, progress) if version is not None else ():
        with suppress(*EXPECTED):
            saved = load(folder, hparams, settings.base.sha256, number)
            if saved.layout.without_zero() == layout:
                return Adapters.from_arrays(saved.layout, hparams, saved.shared).without_zero().arrays()
    return Adapters.initial(layout, hparams, settings.train.seed).arrays()


def load_newest(folder: Path, hparams: HParams, base_sha256: str, wanted: ExpertsConfig) -> Saved:
    """The newest version, which a training goes on from; raises `ComigsError` where its experts are not those `wanted`."""
    saved = load(folder, hparams, base_sha256)
    if (layout := saved.layout.without_zero()) != wanted:
        raise ComigsError(
            f"the settings ask for {differences(asdict(wanted), asdict(layout))}; go back to that, or start anew with: "
            "comigs-edge train --fresh"
        )
    return saved


def find_silent(folder: Path, adapters: Adapters, base_sha256: str, word: str) -> Arrays | None:
    """Of the newest version but those of the training with this `word`: its arrays, if it has a zero expert beside these experts.

    Without what local text has shaped, as that is learned behind a training.
    """
    for number in _before(folder, {TRAINING: word}):
        with suppress(*EXPECTED):
            saved = load(folder, adapters.hparams, base_sha256, number)
            return saved.shared if saved.layout.zero_expert and saved.layout.without_zero() == adapters.layout else None
    return None


def _before(folder: Path, progress: Progress) -> list[int]:
    """The versions that this training has not left itself, the newest first."""
    word = progress.get(TRAINING, "")
    return [number for number in reversed(versions(folder)) if not is_left_by(folder, number, word)]


def differences(wanted: Mapping[str, object], saved: Mapping[str, object]) -> str:
    """What is wanted otherwise than it is, in words."""
    return ", ".join(f"{key} = {wanted[key]} where it is {saved[key]}" for key in wanted if wanted[key] != saved.get(key))
