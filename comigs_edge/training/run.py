"""One training of a home: started or resumed, saved, published."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from comigs_edge.errors import ComigsError
from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.marks import Mark, read_mark
from comigs_edge.home.versions import TRAINING, Saved, load, versions
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import Base
from comigs_edge.planning.plan import Resolved, forget, plan_experts, remember
from comigs_edge.progress import SILENT, Progress
from comigs_edge.training import checkpoint, further, publishing
from comigs_edge.training import local as locality
from comigs_edge.training import passage as passages
from comigs_edge.training.activation_cache import clear
from comigs_edge.training.anew import CHANGED, forget_losses
from comigs_edge.training.batches import Rows
from comigs_edge.training.caches import open_caches
from comigs_edge.training.closing import PROGRESS, Closing, closes, ordinary_rows
from comigs_edge.training.event import Event
from comigs_edge.training.known import MODEL, Knowledge, steps_for_news
from comigs_edge.training.learned import KEY, join_learned
from comigs_edge.training.local import LocalPhase, LocalText
from comigs_edge.training.ordinary import OrdinaryText
from comigs_edge.training.passage import Passage
from comigs_edge.training.resuming import FROM_VERSION, find_silent, find_start, find_version, load_newest, read_course
from comigs_edge.training.schedule import Schedule, make_schedule
from comigs_edge.training.trainer import Trainer
from coordinator.protocol.wire import Arrays


class TrainingRun:
    """A home's text and base in memory, and from `begin` on the trainer; this is where its state is saved.

    `ordinary` text has two parts, of the closing phase and for the test; without it there is no closing phase.
    """

    def __init__(
        self, home: Home, resolved: Resolved, base: Base, rows: tuple[Rows, Rows], passage: Passage,
        ordinary: Sequence[OrdinaryText] = (), latest: checkpoint.Latest | None = None,
        knowledge: Knowledge = Knowledge(),
    ) -> None:  # fmt: skip
        self.home, self.settings, self.plan = home, resolved.settings, resolved.plan
        self.base, self.rows, self.passage = base, rows, passage  # rows: of training and of validation text
        self.ordinary = ordinary
        self.text = " ".join(each.digest() for each in rows)  # losses are of this text
        self.knowledge, self.news = knowledge, ""
        self._asked = asdict(home.settings().model)  # as config.toml is now: it may be edited, and broken, while this runs
        self._latest = latest or checkpoint.Latest(home.state, with_arrays=True)
        self.warnings: list[str] = []
        self.resumed, self.word = False, secrets.token_hex(8)  # by which its own versions are known
        self.from_version: int | None = None  # that it goes on from; None: from the base
        self.learned: list[int] | None = None  # numbers of the files that are trained on, `learned.py`
        self.mark = self.best_mark = Mark()  # of the generalist that is trained, and of the best one
        self.trainer: Trainer  # from `begin` on
        self.closing: Closing | None = None
        self._newest: Saved | None = None  # what local text is added to where nothing better was found
        self.local_text: LocalText | None = None
        self.local: LocalPhase | None = None

    # Start --------------------------------------------------------------------------------------------------------

    def begin(self, steps: int | None, resume: bool | None) -> Trainer:
        """The trainer to run: that of an interrupted training, otherwise a new one of the newest adapters.

        `resume` True insists on an interrupted training, False starts from the bare base. Raises `ComigsError` where the
        settings do not fit what is there.
        """
        state = None if resume is False else self._latest.state
        self._latest = checkpoint.Latest(self.home.state, with_arrays=True)  # what was read may go from memory
        if state is not None:
            self.warnings += state.warnings
            if not state.progress:
                raise ComigsError(f"no sound checkpoint is left in {self.home.state}; start anew with: comigs-edge train --fresh")
        if state is not None and state.is_interrupted:
            self.trainer = self._resume(state.arrays, state.progress, steps)
        elif resume:
            raise ComigsError("there is no interrupted training to resume; start one with: comigs-edge train")
        else:
            adapters = self._start(resume)
            goes_on = not adapters.is_initial and self.mark.word is None  # what a fleet has changed begins at the whole rate
            schedule = make_schedule(self.settings, self.plan.batch, steps, len(self.rows[0]))
            if goes_on:
                few = steps_for_news(self) if steps is None else None
                schedule = replace(schedule.slow(), steps=schedule.steps if few is None else few)
            self.trainer = self._cached_trainer(adapters, schedule)
            if goes_on and state is not None:
                further.restore_moments(self.trainer, state, self.settings.base.sha256)
        # A generalist between one of the fleet and one before it would be neither, and the next update wrong.
        self.trainer.looks_back = self.mark.word is None and not self.home.fleet.exists()
        return self.trainer

    def make_trainer(self, adapters: Adapters) -> Trainer:
        """A trainer of these adapters, beside the home's training: to measure or to time, without state and cache."""
        return Trainer(self._model(adapters), *self.rows, make_schedule(self.settings, self.plan.batch, None))

    def _start(self, resume: bool | None) -> Adapters:
        wanted = plan_experts(self.settings.model, self.base.hparams)
        if resume is None and versions(self.home.adapters):
            saved = load_newest(self.home.adapters, self.base.hparams, self.settings.base.sha256, wanted)
            self.mark = self.best_mark = read_mark(saved.manifest)
            self.from_version = versions(self.home.adapters)[-1]
            self.learned = join_learned(corpus(self.home, self.settings), saved.manifest)
            return Adapters.from_arrays(saved.layout, self.base.hparams, saved.shared).without_zero()
        self.learned = join_learned(corpus(self.home, self.settings), None)
        return Adapters.initial(wanted, self.base.hparams, self.settings.train.seed)

    def _resume(self, arrays: Arrays, progress: checkpoint.Progress, steps: int | None) -> Trainer:
        experts = plan_experts(self.settings.model, self.base.hparams)
        schedule, layout = read_course(progress, self.settings, self.plan.batch, steps, experts, self.home.adapters)
        trainer = self._cached_trainer(Adapters.initial(layout, self.base.hparams, self.settings.train.seed), schedule)
        trainer.restore(arrays, progress)
        self.trainer, self.word = trainer, progress.get(TRAINING, "")
        self.from_version = find_version(self.home.adapters, progress)
        if progress.get("text", self.text) == self.text:
            if PROGRESS in progress and schedule.closing:
                self.closing = self._make_closing(trainer)
                self.closing.restore(arrays, progress)
            if locality.PROGRESS in progress and self.local_text is not None and self._is_shared_done:
                self.local = self._make_local(self.local_text)
                self.local.restore(arrays, progress)
        else:
            is_alone = not self.home.fleet.exists()  # in a fleet the present generalist is to be beaten
            found = self.home.adapters, self.base.hparams, self.settings, progress, self.from_version
            forget_losses(trainer, find_start(*found) if is_alone else None)
            self.warnings.append(CHANGED)
        self.learned = join_learned(corpus(self.home, self.settings), progress)
        self.resumed, self.mark, self.best_mark = True, read_mark(progress), read_mark(progress, "best")
        return trainer

    def _model(self, adapters: Adapters) -> Model:
        return Model(
            self.base, adapters.to(self.base.device), checkpointing=self.plan.checkpointing, captures=self.plan.cuda_graph
        )

    def _cached_trainer(self, adapters: Adapters, plan: Schedule) -> Trainer:
        model, caches = self._model(adapters), None
        if self.plan.cache and model.first_block:
            caches = open_caches(self.home.state, model, self.rows, plan.batch, self.settings.base.sha256)
        clear(self.home.state, tuple(cache.path for cache in caches or ()))
        self.limit_ordinary(plan)
        return Trainer(model, *self.rows, plan, caches)

    def limit_ordinary(self, plan: Schedule) -> None:
        """Asks the base for no more ordinary text than the closing phase of this schedule reads."""
        for text in self.ordinary[:1]:
            text.tokens = min(text.tokens, ordinary_rows(plan) * self.plan.context)

    # Steps --------------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        schedule = self.trainer.schedule
        return self.trainer.total_steps + (schedule.closing if self.ordinary else 0) + self.local_steps

    @property
    def local_steps(self) -> int:
        """Steps of the phase of local text, behind all others."""
        return 0 if self.local_text is None else self.local_text.total_steps(self.trainer.schedule)

    @property
    def steps_done(self) -> int:
        """Those that were done."""
        later = sum(phase.steps for phase in (self.closing, self.local) if phase is not None)
        return self.trainer.expert_steps + self.trainer.router_steps + later

    @property
    def is_done(self) -> bool:
        """Whether all steps have been done, those of the phases behind the others too if there is something to do in them."""
        return self._is_shared_done and (self._local_text is None or (self.local is not None and self.local.is_done))

    @property
    def _is_shared_done(self) -> bool:
        return self.trainer.is_done and (not self._closes or (self.closing is not None and self.closing.is_done))

    @property
    def _closes(self) -> bool:
        return bool(self.ordinary) and closes(self.trainer)

    @functools.cached_property
    def _silent(self) -> Arrays | None:
        """What it goes on from, if that has a zero expert and what comes out is to have one."""
        goes_on = self.from_version is not None and self.ordinary
        return find_silent(self.home.adapters, self.trainer.adapters, self.settings.base.sha256, self.word) if goes_on else None

    @property
    def is_better(self) -> bool:
        """Whether it has made something better than its start, and no model that has lost its zero expert."""
        return self.trainer.is_better and (self._silent is None or (self.closing is not None and self.closing.is_kept))

    @property
    def loss_before(self) -> float | None:
        """The validation loss that was to be beaten."""
        return self.trainer.first_loss if self.closing is None else self.closing.loss_before

    def steps(self) -> Iterator[Event]:
        """Does step after step; stop iterating to interrupt."""
        yield from self.trainer.run()
        if self.trainer.captured is not None:
            self.trainer.captured.forget()  # the phases behind capture their own steps
        if self._closes:
            self.closing = self.closing or self._make_closing(self.trainer)
            yield from self.closing.run()
        if self._is_shared_done and (text := self._local_text) is not None:
            self.local = self.local or self._make_local(text)
            yield from self.local.run(self.trainer, 0 if self.closing is None else self.closing.steps)

    def make_ordinary(self, progress: Progress = SILENT) -> None:
        """Lets the base write its ordinary text, which takes minutes once; `progress` gets tokens."""
        for text in self.ordinary:
            text.make(self.base, progress)

    def _make_closing(self, trainer: Trainer) -> Closing:
        return Closing(trainer, self._ordinary_rows(), self.settings.train.seed, self._model, before=self._silent)

    def _ordinary_rows(self) -> Rows:
        self.make_ordinary()
        return Rows(self.ordinary[0].answers, self.plan.context, self.settings.train.seed)

    @property
    def _local_text(self) -> LocalText | None:
        return self.local_text if self.is_better or versions(self.home.adapters) else None  # else nothing to add it to

    def _make_local(self, text: LocalText) -> LocalPhase:
        arrays, layout, _ = self.result()  # without a local phase: what the shared text alone has made
        if not self.is_better:
            self._newest = load(self.home.adapters, self.base.hparams, self.settings.base.sha256)
            arrays, layout = self._newest.shared, self._newest.layout
        start = Adapters.from_arrays(layout, self.base.hparams, arrays)
        ordinary = self._ordinary_rows() if layout.zero_expert and self.ordinary else None
        return LocalPhase(start, text, self.trainer.schedule, ordinary, self._model)

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
        for ending in (self.closing, self.local):
            if ending is not None:
                more, phase = ending.state()
                arrays, progress = arrays | more, progress | phase
        progress |= {"finished": self.is_done, "base_sha256": self.settings.base.sha256, "text": self.text}
        progress |= self.mark.facts() | self.best_mark.facts("best")
        progress |= {KEY: self.learned, passages.KEY: asdict(self.passage), TRAINING: self.word, MODEL: self._asked}
        progress[FROM_VERSION] = self.from_version
        ended = self.knowledge.after(self, version is not None)
        more, phase = (ended if self.is_done else self.knowledge).state()
        remember(self.home, self.plan)  # with the first state that could be gone on with, not before
        checkpoint.save(self.home.state, arrays | more, progress | phase)
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
        return checkpoint.Latest(self.home.state).interrupted is not None

    def publish(self) -> int | None:
        """Makes the best state the newest adapters, closed if the training is done; None if nothing is better than its start."""
        return publishing.publish(self, self._newest)

    def result(self) -> tuple[Arrays, ExpertsConfig, float]:
        """What is kept, and the validation loss of shared text before the local phase, nats a token."""
        return publishing.result(self)
