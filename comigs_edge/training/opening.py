"""A training of a home is opened: torch set up as the plan says, text and base in memory."""

from __future__ import annotations

import gc

import torch

from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.home.folder import Home
from comigs_edge.nn.weights import open_base
from comigs_edge.planning.plan import Resolved
from comigs_edge.planning.rates import use
from comigs_edge.progress import SILENT, Progress
from comigs_edge.training import checkpoint
from comigs_edge.training.batches import Rows
from comigs_edge.training.known import NOTHING_NEW, find_knowledge
from comigs_edge.training.local import LocalText
from comigs_edge.training.memory import tune_allocator
from comigs_edge.training.passage import Passage, find_passage
from comigs_edge.training.run import TrainingRun
from comigs_edge.training.text import TOKENS, open_ordinary, read_local, read_rows


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
    latest = checkpoint.Latest(home.state, with_arrays=True)
    passage = Passage() if resume is False else find_passage(latest.state)
    knowledge = find_knowledge(home, settings, latest.state, resume)
    is_learned, most_new = knowledge.is_learned(passage, settings.train.passes), settings.train.steps * plan.batch
    training, validation, passage = read_rows(
        home, settings, plan.context, tokenizer, refused, progress, tokens, passage, knowledge.known or (), most_new
    )
    ordinary = open_ordinary(home, settings, tokenizer) if settings.has_zero_expert else []
    local = read_local(home, settings, plan.context, tokenizer, refused, progress)
    del tokenizer
    base = open_base(home.base_file, plan.threads, plan.keep, getattr(torch, plan.precision), plan.device)
    gc.collect()
    tune_allocator(lean=not plan.keep)  # gives back what loading took
    run = TrainingRun(home, resolved, base, (training, validation), passage, ordinary, latest, knowledge)
    if local is not None and settings.model.specialists == 0:
        run.warnings.append("local text is not learned: there are no specialists (specialists = 0)")
    elif local is not None:
        run.local_text = LocalText(training=local[0], validation=local[1], shared=training.without_new())
    run.news = _news(training, is_learned)
    if refused:
        run.warnings.append(f"{len(refused)} chats were left out: {refused[0]}")
    return run


def _news(training: Rows, is_learned: bool) -> str:
    """What a person is to know of the text that a training reads, before its first step."""
    if is_learned and training.new_reads:
        return "the new text was read before and made nothing better; it is read again"
    if is_learned:
        return NOTHING_NEW
    return f"new text comes first, {training.num_new:,} of {len(training):,} rows" if training.new_reads else ""
