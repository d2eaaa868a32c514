"""Which part of long text a training reads: each one goes on where the one before it stopped, so that all is learned in turn.

Documents stand in the order of their hashes, and after the last comes the first. As many as a training may hold are a passage;
its rows come in a seeded order, and the next passage begins when all of them have been read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from comigs_edge.training.checkpoint import Checkpoint

KEY = "passage"  # in checkpoints
MOST_NEW = 0.5  # of all rows are new; more is read together with the rest


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A part of the training text, and how much of it earlier trainings have read."""

    start: str = ""  # SHA-256 of the document behind which it begins; empty: with the first one
    end: str = ""  # of the last document in it; empty: it holds all text
    rows: int = 0  # in it
    first_row: int = 0  # with which a training begins; it goes on with the next epoch behind the last one
    new: int = 0  # rows of new text that it reads before
    new_before: int = 0  # those that trainings before it have read

    def after(self, rows: int) -> Passage:
        """What is to be read by the training after one that has read so many rows."""
        first_row, new_before = self.first_row + max(0, rows - self.new), self.new_before + min(rows, self.new)
        if self.end and first_row >= self.rows:
            return Passage(start=self.end)
        return replace(self, first_row=first_row, new=0, new_before=new_before)

    def is_read(self, times: float, but: int = 0) -> bool:
        """Whether it is all text, and all rows `but` so many were read so often before."""
        return not self.start and not self.end and self.first_row + self.new_before >= times * (self.rows - but)


def find_passage(state: Checkpoint | None) -> Passage:
    """What a training reads that resumes the one in this state, or that comes after it where it is finished."""
    if state is None or not state.progress:
        return Passage()
    progress, names = state.progress, {field.name for field in fields(Passage)}
    passage = Passage(**{name: value for name, value in progress.get(KEY, {}).items() if name in names})
    return passage.after(progress["expert_steps"] * progress["schedule"]["batch"]) if progress["finished"] else passage
