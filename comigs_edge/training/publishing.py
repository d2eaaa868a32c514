"""What a training has made becomes the newest version of the adapters."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from comigs_edge.arrays import digest
from comigs_edge.errors import ComigsError
from comigs_edge.home.folder import corpus
from comigs_edge.home.versions import (
    TRAINING,
    UNFINISHED,
    Saved,
    is_left_by,
    note_finished,
    notes_of,
    read_manifest,
    remove,
    save,
    versions,
)
from comigs_edge.training.learned import KEY, join_learned

if TYPE_CHECKING:
    from comigs_edge.nn.experts import ExpertsConfig
    from comigs_edge.training.run import TrainingRun
    from coordinator.protocol.wire import Arrays


def _may_replace(run: TrainingRun, there: list[int]) -> bool:
    """Whether what an interrupted training has made may be used: it goes on from the model in use, or there is none."""
    return run.from_version is not None or all(is_left_by(run.home.adapters, each, run.word) for each in there)


def result(run: TrainingRun) -> tuple[Arrays, ExpertsConfig, float]:
    """What is kept of a training, and the validation loss of shared text before its local phase, nats a token."""
    trainer, closing, local = run.trainer, run.closing, run.local
    is_closed = closing is not None and closing.is_kept
    loss = closing.loss if closing is not None and is_closed else trainer.best_loss
    if local is not None and local.is_kept:
        return local.trainer.best, local.trainer.adapters.layout, loss
    if closing is not None and is_closed:
        return closing.adapters.arrays(), closing.adapters.layout, loss
    return trainer.best, trainer.adapters.layout, loss


def publish(run: TrainingRun, newest: Saved | None) -> int | None:
    """Makes the best state the newest adapters, closed if the training is done; None if nothing is better than its start.

    `newest` is the version that local text is added to, where shared text made nothing better. What this very training left
    when it was interrupted gives way.
    """
    trainer = run.trainer
    local = run.local if run.local is not None and run.local.is_kept else None
    there = versions(run.home.adapters)
    is_own = run.resumed and bool(there) and is_left_by(run.home.adapters, there[-1], run.word)
    if not run.is_done and not _may_replace(run, there):
        return None
    if local is None and not run.is_better:
        # It was better on the text of before, and is not on today's; in a fleet it was not measured again.
        if is_own and run.is_done and not run.home.fleet.exists():
            remove(run.home.adapters, there[-1:])
        return None
    arrays, layout, loss = run.result()
    with contextlib.suppress(ComigsError):  # a damaged version is no reason to lose the next one
        if there and read_manifest(run.home.adapters, there[-1])["sha256"] == digest(arrays):
            if run.is_done:
                note_finished(run.home.adapters, there[-1])
            return there[-1]
    notes = {
        "validation_loss": loss, "validation_loss_before": run.loss_before, "base_name": run.settings.base.name,
        "expert_steps": trainer.expert_steps, "router_steps": trainer.router_steps,
        "block_format": trainer.schedule.block_format, "text": run.text[:16], KEY: run.learned, **run.best_mark.facts(),
    }  # fmt: skip
    if newest is not None:
        notes = notes_of(newest.manifest) | {KEY: join_learned(corpus(run.home, run.settings), newest.manifest)}
    notes |= local.facts() if local is not None else {}
    notes |= {TRAINING: run.word} | ({} if run.is_done else {UNFINISHED: True})
    start = None if local is None else local.start
    version = save(run.home.adapters, arrays, layout, run.settings.base.sha256, notes, start)
    if is_own:
        remove(run.home.adapters, there[-1:])
    return version
