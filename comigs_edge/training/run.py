"""Brings a home's settings, text, base and saved state together: what `train` and `evaluate` share."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from comigs_edge.arrays import digest
from comigs_edge.data.tokenizer import Tokenizer, encode
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.versions import load, read_manifest, save, versions
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import Layout
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import Base
from comigs_edge.planning.plan import plan_experts
from comigs_edge.progress import Progress
from comigs_edge.training import checkpoint
from comigs_edge.training.activation_cache import Below, Key, clear
from comigs_edge.training.batches import Rows
from comigs_edge.training.schedule import Schedule
from comigs_edge.training.trainer import Trainer
from profiles import DeviceProfile


def schedule(settings: Config, profile: DeviceProfile, steps: int | None) -> Schedule:
    """The schedule that the settings ask for; `steps` from the command line go first."""
    train, storage, rates = settings.train, settings.storage(), settings.learning_rates()
    return Schedule(
        steps=steps or train.steps, batch=train.batch or profile.batch,
        expert_learning_rate=rates[0], final_learning_rate=rates[1],
        router_learning_rate=train.router_learning_rate, warmup_steps=train.warmup_steps,
        router_period=train.router_period, router_steps=train.router_steps, balance_weight=train.balance_weight,
        weight_decay=train.weight_decay, validation_rows=train.validation_rows,
        rates_by_weight=train.rates_by_weight, router_offset_rate=train.router_offset_rate,
        block_format=storage.fake_format, quantise_start=storage.start,
    )  # fmt: skip


class Training:
    """One training of a home: a trainer with its state restored or fresh, and where it is saved."""

    def __init__(
        self, home: Home, settings: Config, profile: DeviceProfile, base: Base, rows: tuple[Rows, Rows],
        checkpointing: str = "block", cache: bool = False,
    ) -> None:  # fmt: skip
        self.home, self.settings, self.profile, self.base, self.rows = home, settings, profile, base, rows
        self.checkpointing, self.cache = checkpointing, cache  # cache: of the outputs of blocks without experts
        self.warnings: list[str] = []
        self.resumed = False
        self.fleet_mark: str | None = None  # of the generalist that is trained, and of the best one; `Books.mark`
        self.best_mark: str | None = None

    def begin(self, steps: int | None, resume: bool | None) -> Trainer:
        """The trainer to run: an interrupted training goes on, otherwise a new one starts from the newest adapters.

        `resume` True insists on going on, False starts from the bare base. Raises `ComigsError` where the settings
        do not fit what is there.
        """
        found = None if resume is False else checkpoint.load(self.home.state)
        if found is not None:
            self.warnings += found[2]
            if not found[1]:
                raise ComigsError(
                    f"no sound checkpoint is left in {self.home.state}; start anew with: comigs-edge train --fresh"
                )
            if not found[1]["finished"]:
                return self._resume(found[0], found[1], steps)
        if resume:
            raise ComigsError("there is no interrupted training to resume; start one with: comigs-edge train")
        return self._trainer(self._start(resume), schedule(self.settings, self.profile, steps))

    def _start(self, resume: bool | None) -> Adapters:
        wanted = plan_experts(self.settings.model, self.profile, self.base.shape)
        if resume is None and versions(self.home.adapters):
            saved = load(self.home.adapters, self.base.shape, self.settings.base.sha256)
            if saved.layout != wanted:
                raise ComigsError(
                    f"the settings ask for {_differences(asdict(wanted), asdict(saved.layout))}; go back to that, or "
                    "start anew with: comigs-edge train --fresh"
                )
            self.fleet_mark = self.best_mark = saved.manifest.get("fleet_mark")
            return Adapters.from_arrays(saved.layout, self.base.shape, saved.arrays)
        return Adapters.initial(wanted, self.base.shape, self.settings.train.seed)

    def _resume(self, arrays: Any, progress: dict[str, Any], steps: int | None) -> Trainer:
        if progress["base_sha256"] != self.settings.base.sha256:
            raise ComigsError(
                "the interrupted training belongs to another base; start anew with: comigs-edge train --fresh"
            )
        wanted = asdict(schedule(self.settings, self.profile, steps or progress["schedule"]["steps"]))
        wanted |= asdict(plan_experts(self.settings.model, self.profile, self.base.shape))
        saved = asdict(Schedule(**progress["schedule"])) | asdict(Layout(**progress["layout"]))
        if wanted != saved:
            raise ComigsError(
                f"the settings ask for {_differences(wanted, saved)} in the interrupted training; run it with its own "
                "settings, or start anew with: comigs-edge train --fresh"
            )
        adapters = Adapters.initial(Layout(**progress["layout"]), self.base.shape, self.settings.train.seed)
        trainer = self._trainer(adapters, Schedule(**progress["schedule"]))
        trainer.restore(arrays, progress)
        self.resumed, self.fleet_mark = True, progress.get("fleet_mark")
        self.best_mark = progress.get("best_mark")
        return trainer

    def _trainer(self, adapters: Adapters, plan: Schedule) -> Trainer:
        model = Model(self.base, adapters.to(self.base.device), checkpointing=self.checkpointing)
        below = self._below(model, plan.batch) if self.cache and model.first_block else None
        clear(self.home.state, tuple(each.path for each in below or ()))
        return Trainer(model, *self.rows, plan, below)

    def _below(self, model: Model, batch: int) -> tuple[Below, Below]:
        key: Key = (
            self.settings.base.sha256, model.first_block, self.checkpointing, str(self.base.dtype), str(self.base.device),
            torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.__version__,
        )  # fmt: skip
        training, validation = (
            Below(
                self.home.state, rows, batch, self.base.shape.width, key,
                lambda group: model.below(group.tokens.to(self.base.device), group.documents),
            )
            for rows in self.rows
        )  # fmt: skip
        return training, validation

    def save(self, trainer: Trainer) -> None:
        """Writes a checkpoint."""
        arrays, progress = trainer.state()
        extra = {
            "finished": trainer.is_done, "base_sha256": self.settings.base.sha256, "fleet_mark": self.fleet_mark,
            "best_mark": self.best_mark,
        }  # fmt: skip
        checkpoint.save(self.home.state, arrays, progress | extra)

    def end(self, trainer: Trainer) -> int | None:
        """Saves and publishes; returns the adapters' version, if there is one.

        A finished training is marked as finished only when its adapters are on disk: a kill in between costs the time
        since the last checkpoint, never the result. An interrupted one is saved first.
        """
        if not trainer.is_done:
            self.save(trainer)
            return self.publish(trainer)
        version = self.publish(trainer)
        self.save(trainer)
        for below in trainer.below or ():
            below.close()
        clear(self.home.state)
        return version

    def publish(self, trainer: Trainer) -> int | None:
        """Makes the best state the newest adapters; None if the training has made nothing better than its start."""
        if trainer.first_loss is None or not trainer.best_loss < trainer.first_loss:
            return None
        there = versions(self.home.adapters)
        if there and read_manifest(self.home.adapters, there[-1])["sha256"] == digest(trainer.best):
            return there[-1]
        notes = {
            "validation_loss": trainer.best_loss, "validation_loss_before": trainer.first_loss,
            "expert_steps": trainer.expert_steps, "router_steps": trainer.router_steps,
            "block_format": trainer.schedule.block_format, "fleet_mark": self.best_mark,
        }  # fmt: skip
        return save(self.home.adapters, trainer.best, trainer.adapters.layout, self.settings.base.sha256, notes)


def _differences(wanted: dict[str, Any], saved: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} = {wanted[key]} where it is {saved[key]}" for key in wanted if wanted[key] != saved.get(key)
    )


def rows(
    home: Home, settings: Config, profile: DeviceProfile, tokenizer: Tokenizer, refused: list[str], progress: Progress
) -> tuple[Rows, Rows]:
    """Training and validation rows of the home's text; raises `ComigsError` if there is too little."""
    documents = corpus(home, settings)
    documents.check_enough()
    context = settings.train.context or profile.context
    training, validation = (
        Rows(encode(documents, tokenizer, split, refused, progress), context, settings.train.seed)
        for split in ("training", "validation")
    )
    return training, validation
