"""What an exchange with the coordinator is told and tells; see `federation.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator.protocol.messages import Receipt
from coordinator.protocol.wire import Arrays


class Judgement(NamedTuple):
    """Validation loss in nats a token with the generalist before, and with the new one."""

    before: float
    after: float


Judge = Callable[[Arrays, Arrays], Judgement]  # generalist before, generalist after


@dataclass
class Exchange:
    """What one exchange did."""

    generalist: Arrays | None = None  # to go on with; None: the one that there was
    receipts: list[Receipt] = field(default_factory=list)
    taken_over: int | None = None  # number of the generalist that was taken over
    refused: int | None = None  # number of the one that was worse
    judgement: Judgement | None = None
    offline: str | None = None  # why the coordinator was not reached
    waits: bool = False  # an update waits in the outbox
    bytes_sent: int = 0
    bytes_received: int = 0
