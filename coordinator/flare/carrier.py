"""FLARE's executor at a site. It carries bytes and learns nothing of them: the home's training is another process.

FLARE's client does one task at a time, and the server has no way to take one back. So a site that has no answer yet says so
with an empty one, and is told to wait on with an empty task, or gets the next round's.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from coordinator.flare.spool import Spool
from coordinator.protocol.kits import SPOOL


class Carrier(Executor):
    """Of the site whose home's folder the variable `COMIGS_EDGE_FLARE` names; it waits `seconds` for an answer."""

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        if SPOOL not in os.environ:
            raise ValueError("this site's client was started without its home; start it with: comigs-edge flare run KIT")
        self._seconds, self._spool = seconds, Spool(Path(os.environ[SPOOL]))

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Hands the task over, and returns the answer, or an empty one."""
        task = from_shareable(shareable).data
        if head := task["head"].tobytes():
            self._spool.put(head + task["data"].tobytes())
        answer = self._spool.wait(self._seconds, lambda: abort_signal.triggered)
        return DXO(DataKind.WEIGHTS, data={"data": np.frombuffer(answer, np.uint8)}).to_shareable()
