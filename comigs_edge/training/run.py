"""One training of a home: opened, started or resumed, saved, published."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from comigs_edge.arrays import digest
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.errors import ComigsError
from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.marks import Mark, read_mark
from comigs_edge.home.versions import load, read_manifest, save, versions
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import Base, open_base
from comigs_edge.planning.plan import Resolved, forget, plan_experts, remember
from comigs_edge.planning.rates import use
from comigs_edge.progress import SILENT, Progress
from comigs_edge.training import checkpoint, further
from comigs_edge.training import passage as passages
from comigs_edge.training.activation_cache import ActivationCache, Key, clear
from comigs_edge.training.batches import Batch, Rows
from comigs_edge.training.closing import PROGRESS, Closing, closes, ordinary_rows
from comigs_edge.training.learned import KEY, join_learned
from comigs_edge.training.memory import tune_allocator
from comigs_edge.training.ordinary import OrdinaryText
from comigs_edge.training.passage import Passage, find_passage
from comigs_edge.training.schedule import Schedule, make_schedule
from comigs_edge.training.text import TOKENS, open_ordinary, read_rows
from comigs_edge.training.trainer import Event, Trainer
from coordinator.protocol.wire import Arrays


def open_training(home: Home, resolved: Resolved, progress: Progress = SILENT, resume: bool | None = None) -> TrainingRun:
    """Sets torch up as the plan says, and loads the home's text and base; nothing is trained, and nothing is written yet.

    `resume` is as in `TrainingRun.begin`. Raises `ComigsError` if there is too little text.
    """
    settings, plan = resolved.settings, resolved.plan
    torch.set_num_threads(plan.threads)
    use(plan.backend)
    refused: list[str] = []
    # The tokenizer is gone before the base is loaded.
    tokens = max(TOKENS, settings.train.steps * plan.batch * plan.context)
    tokenizer = Tokenizer(home.base_file, settings.model.thinking)
    passage = Passage() if resume is False else find_passage(checkpoint.load(home.state))
    training, validation, passage = read_rows(home, settings, plan.context, tokenizer, refused, progress, tokens, passage)
    ordinary = open_ordinary(home, settings, tokenizer) if settings.has_zero_expert else []
    del tokenizer
    base = open_base(home.base_file, plan.threads, plan.keep, getattr(torch, plan.precision), plan.device)
    gc.collect()
    tune_allocator(lean=not plan.keep)  # gives back what loading took
    run = TrainingRun(home, resolved, base, (training, validation), passage, ordinary)
    if refused:
        run.warnings.append(f"{len(refused)} chats were left out: {refused[0]}")
    return run


class TrainingRun:
    """A home's text and base in memory, and from `begin` on the trainer; this is where its state is saved.

    `ordinary` text has two parts, of the closing phase and for the test; without it there is no closing phase.
    """

    def __init__(
        self, home: Home, resolved: Resolved, base: Base, rows: tuple[Rows, Rows], passage: Passage,
        ordinary: Sequence[OrdinaryText] = (),
    ) -> None:  # fmt: skip
        self.home, self.settings, self.plan = home, resolved.settings, resolved.plan
        self.base, self.rows, self.passage = base, rows, passage  # rows: of training and of validation text
        self.ordinary = ordinary
        self.text = " ".join(each.digest() for each in rows)  # losses are of this text
        self.warnings: list[str] = []
        self.resumed = False
        self.learned: list[int] | None = None  # numbers of the files that are trained on, `learned.py`
        self.mark = self.best_mark = Mark()  # of the generalist that is trained, and of the best one
        self.trainer: Trainer  # from `begin` on
        self.closing: Closing | None = None

    # Start --------------------------------------------------------------------------------------------------------

    def begin(self, steps: int | None, resume: bool | None) -> Trainer:
        """The trainer to run: that of an interrupted training, otherwise a new one of the newest adapters.

        `resume` True insists on an interrupted training, False starts from the bare base. Raises `ComigsError` where the
        settings do not fit what is there.
        """
        state = None if resume is False else checkpoint.load(self.home.state)
        if state is not None:
            self.warnings += state.warnings
            if not state.progress:
                raise ComigsError(f"no sound checkpoint is left in {self.home.state}; start anew with: comigs-edge train --fresh")
        if state is not None and state.is_interrupted:
            self.trainer = self._resume(state.arrays, state.progress, steps)
        elif resume:
            raise ComigsError("there is no interrupted training to resume; start one with: comigs-edge train")
        else:
            adapters, schedule = self._start(resume), make_schedule(self.settings, self.plan.batch, steps, len(self.rows[0]))
            goes_on = not adapters.is_initial and self.mark.word is None  # what a fleet has changed begins at the whole rate
            self.trainer = self._cached_trainer(adapters, further.slow(schedule) if goes_on else schedule)
            if goes_on and state is not None:
                further.restore_moments(self.trainer, state, self.settings.base.sha256)
        remember(self.home, self.plan)
        return self.trainer

    def make_trainer(self, adapters: Adapters) -> Trainer:
        """A trainer of these adapters, beside the home's training: to measure or to time, without state and cache."""
        return Trainer(self._model(adapters), *self.rows, make_schedule(self.settings, self.plan.batch, None))

    def _start(self, resume: bool | None) -> Adapters:
        wanted = plan_experts(self.settings.model, self.base.hparams)
        if resume is None and versions(self.home.adapters):
            saved = load(self.home.adapters, self.base.hparams, self.settings.base.sha256)
            if (layout := saved.layout.without_zero()) != wanted:
                raise ComigsError(
                    f"the settings ask for {_differences(asdict(wanted), asdict(layout))}; go back to that, or "
                    "start anew with: comigs-edge train --fresh"
                )
            self.mark = self.best_mark = read_mark(saved.manifest)
            self.learned = join_learned(corpus(self.home, self.settings), saved.manifest)
            return Adapters.from_arrays(saved.layout, self.base.hparams, saved.arrays).without_zero()
        self.learned = join_learned(corpus(self.home, self.settings), None)
        return Adapters.initial(wanted, self.base.hparams, self.settings.train.seed)

    def _resume(self, arrays: Arrays, progress: checkpoint.Progress, steps: int | None) -> Trainer:
        if progress["base_sha256"] != self.settings.base.sha256:
            raise ComigsError("the interrupted training belongs to another base; start anew with: comigs-edge train --fresh")
        schedule, layout = Schedule(**progress["schedule"]), ExpertsConfig(**progress["layout"])
        asked = schedule.keep_course(make_schedule(self.settings, self.plan.batch, steps or schedule.steps), PROGRESS in progress)
        if PROGRESS not in progress:  # what comes at the end can still be chosen, and was not there in earlier versions
            schedule = replace(schedule, closing_steps=asked.closing_steps)
        wanted = asdict(asked)
        wanted |= asdict(plan_experts(self.settings.model, self.base.hparams))
        saved = asdict(schedule) | asdict(layout)
        if wanted != saved:
            raise ComigsError(
                f"the settings ask for {_differences(wanted, saved)} in the interrupted training; run it with its own "
                "settings, or start anew with: comigs-edge train --fresh"
            )
        trainer = self._cached_trainer(Adapters.initial(layout, self.base.hparams, self.settings.train.seed), schedule)
        trainer.restore(arrays, progress)
        if progress.get("text", self.text) == self.text:
            if PROGRESS in progress:
                self.closing = self._make_closing(trainer)
                self.closing.restore(arrays, progress)
        else:
            trainer.measure_anew()
            self.warnings.append(
                "your text, or what of it is measured, has changed since this training began: it goes on from what it learned, "
                "and is measured anew; to start without that: comigs-edge train --fresh"
            )
        self.learned = join_learned(corpus(self.home, self.settings), progress)
        self.resumed, self.mark, self.best_mark = True, read_mark(progress), read_mark(progress, "best")
        return trainer

    def _model(self, adapters: Adapters) -> Model:
        return Model(self.base, adapters.to(self.base.device), checkpointing=self.plan.checkpointing)

    def _cached_trainer(self, adapters: Adapters, plan: Schedule) -> Trainer:
        model = self._model(adapters)
        caches = self._open_caches(model, plan.batch) if self.plan.cache and model.first_block else None
        clear(self.home.state, tuple(cache.path for cache in caches or ()))
        for text in self.ordinary[:1]:  # no more than the closing phase will read
            text.tokens = min(text.tokens, ordinary_rows(plan) * self.plan.context)
        return Trainer(model, *self.rows, plan, caches)

    def _open_caches(self, model: Model, batch: int) -> tuple[ActivationCache, ActivationCache]:
        key: Key = (
            self.settings.base.sha256, model.first_block, self.plan.checkpointing, str(self.base.dtype),
            str(self.base.device), torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.__version__,
        )  # fmt: skip

        def compute(group: Batch) -> Tensor:
            return model.below(group.tokens.to(self.base.device), group.documents)

        training, validation = (
            ActivationCache(self.home.state, rows, batch, self.base.hparams.width, key, compute) for rows in self.rows
        )
        return training, validation

    # Steps --------------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.trainer.total_steps + (self.trainer.schedule.closing if self.ordinary else 0)

    @property
    def steps_done(self) -> int:
        """Those that were done."""
        closing = 0 if self.closing is None else self.closing.steps
        return self.trainer.expert_steps + self.trainer.router_steps + closing

    @property
    def is_done(self) -> bool:
        """Whether all steps have been done, those of the closing phase too if there is something to close."""
        return self.trainer.is_done and (not self._closes or (self.closing is not None and self.closing.is_done))

    @property
    def _closes(self) -> bool:
        return bool(self.ordinary) and closes(self.trainer)

    def steps(self) -> Iterator[Event]:
        """Does step after step; stop iterating to interrupt."""
        yield from self.trainer.run()
        if self._closes:
            self.closing = self.closing or self._make_closing(self.trainer)
            yield from self.closing.run()

    def make_ordinary(self, progress: Progress = SILENT) -> None:
        """Lets the base write its ordinary text, which takes minutes once; `progress` gets tokens."""
        for text in self.ordinary:
            text.make(self.base, progress)

    def _make_closing(self, trainer: Trainer) -> Closing:
        self.make_ordinary()
        seed = self.settings.train.seed
        return Closing(trainer, Rows(self.ordinary[0].answers, self.plan.context, seed), seed, self._model)

    def count(self, event: Event) -> None:
        """After each step: what the generalist has learned."""
        if event.phase == "expert":
            self.mark = self.mark.add(event.tokens)
        if event.is_best:
            self.best_mark = self.mark

    # Saving -------------------------------------------------------------------------------------------------------

    def save(self) -> int | None:
        """Writes a checkpoint. Returns the version of the adapters if the training is finished and has made one.

        Nothing else marks a training as finished, and here its adapters are on disk before: a kill in between costs the time
        since the last checkpoint, never the result.
        """
        version = self.publish() if self.is_done else None
        arrays, progress = self.trainer.state()
        if self.closing is not None:
            more, phase = self.closing.state()
            arrays, progress = arrays | more, progress | phase
        progress |= {"finished": self.is_done, "base_sha256": self.settings.base.sha256, "text": self.text}
        progress |= self.mark.facts() | self.best_mark.facts("best")
        progress |= {KEY: self.learned, passages.KEY: asdict(self.passage)}
        checkpoint.save(self.home.state, arrays, progress)
        return version

    def end(self) -> int | None:
        """Saves and publishes a training that has finished or was interrupted; returns the adapters' version if they have one."""
        version = self.save()
        if not self.is_done:
            return self.publish()
        self.drop_caches()
        forget(self.home)
        return version

    def drop_caches(self) -> None:
        """Gives the disk back what can be computed again; no step can follow."""
        for cache in self.trainer.caches or ():
            cache.close()
        self.trainer.caches = None
        clear(self.home.state)

    @property
    def is_saved(self) -> bool:
        """Whether there is a state of this training, or of one before, to go on from."""
        return checkpoint.interrupted(self.home.state) is not None

    def publish(self) -> int | None:
        """Makes the best state the newest adapters, closed if the training is done; None if nothing is better than its start."""
        trainer = self.trainer
        if trainer.first_loss is None or not trainer.best_loss < trainer.first_loss:
            return None
        arrays, layout, loss = self.result()
        there = versions(self.home.adapters)
        with contextlib.suppress(ComigsError):  # a damaged version is no reason to lose the next one
            if there and read_manifest(self.home.adapters, there[-1])["sha256"] == digest(arrays):
                return there[-1]
        notes = {
            "validation_loss": loss, "validation_loss_before": trainer.first_loss, "base_name": self.settings.base.name,
            "expert_steps": trainer.expert_steps, "router_steps": trainer.router_steps,
            "block_format": trainer.schedule.block_format, "text": self.text[:16], KEY: self.learned, **self.best_mark.facts(),
        }  # fmt: skip
        return save(self.home.adapters, arrays, layout, self.settings.base.sha256, notes)

    def result(self) -> tuple[Arrays, ExpertsConfig, float]:
        """What is kept, and its validation loss, nats a token."""
        trainer, closing = self.trainer, self.closing
        if closing is not None and closing.is_kept:
            return closing.adapters.arrays(), closing.adapters.layout, closing.loss
        return trainer.best, trainer.adapters.layout, trainer.best_loss


def _differences(wanted: dict[str, object], saved: dict[str, object]) -> str:
    return ", ".join(f"{key} = {wanted[key]} where it is {saved[key]}" for key in wanted if wanted[key] != saved.get(key))
