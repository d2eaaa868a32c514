"""Result types of one exchange with the fleet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from comigs_edge.fleet.heard import Heard
from coordinator.protocol.messages import Receipt
from coordinator.protocol.wire import Arrays


class Judgement(NamedTuple):
    """Validation loss in nats a token with the best of the generalists before, and with the new one."""

    before: float
    after: float
    before_is_present: bool = True  # that best one is the present one


Judge = Callable[[Sequence[Arrays], Arrays], Judgement]  # generalists before, the present one first; generalist after


@dataclass
class Outcome:
    """What one exchange did."""

    generalist: Arrays | None = None  # to train on with; None: the one from before
    receipts: list[Receipt] = field(default_factory=list)
    had_arrived: bool = False  # an update counts whose receipt was lost
    taken_over: int | None = None  # number of the generalist that was taken over
    refused: int | None = None  # number of the one that was worse
    judgement: Judgement | None = None
    restored_to: int | None = None  # the generalist that the coordinator was restored to
    offline: str | None = None  # why the fleet was not reached
    waits: bool = False  # something was learned that the fleet has not received
    heard: Heard = field(default_factory=Heard)  # what the coordinator said last
    bytes_sent: int = 0
    bytes_received: int = 0

    @property
    def restoration(self) -> str:
        """What to tell the user of the coordinator's restoration."""
        shown = "before its first generalist" if self.restored_to == -1 else f"to generalist {self.restored_to}"
        return f"the coordinator was restored {shown}; your progress since then goes on top"
