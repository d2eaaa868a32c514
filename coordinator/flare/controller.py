"""FLARE's workflow on the server: it sends a desk's tasks and enters the answers, for a number of rounds.

A round ends as it does in `serve`: when every device that is awaited is in, or at its deadline. What was counted is in the
coordinator's folder before the next task leaves, so a job that dies loses what is on its way, and the next one goes on.
"""

from __future__ import annotations

import queue
import time
from pathlib import Path

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController

from coordinator.flare.desk import Desk, Sent
from coordinator.flare.export import TASK
from coordinator.ledger.clock import Clock
from coordinator.ledger.folder import Folder

WAIT_ON = Sent(b"", b"")  # for a site that has no answer yet


class Rounds(ModelController):
    """Of the fleet in the folder `data` of this machine. It ends after `rounds`, or `minutes` at most.

    Sites that connect while a job runs are in the next one only, so none may last for ever.
    """

    def __init__(self, data: str, rounds: int = 10, minutes: float = 60.0) -> None:
        super().__init__(persistor_id="", ignore_result_error=True)
        self._data, self._rounds, self._minutes = Path(data), rounds, minutes
        self._answers: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()

    def run(self) -> None:
        """All rounds; the ledger is written by this thread alone."""
        end = time.monotonic() + 60 * self._minutes
        with Folder.open(self._data) as folder, folder.fleet(Clock()) as fleet:
            desk = Desk(fleet, folder.pin)
            last = fleet.open_round + self._rounds
            while fleet.open_round < last and not self._is_over(end):
                self._run_round(desk, end)

    def _is_over(self, end: float) -> bool:
        return bool(self.abort_signal.triggered) or time.monotonic() >= end

    def _run_round(self, desk: Desk, end: float) -> None:
        number = desk.fleet.open_round
        for site, task in desk.tasks(client.name for client in self.engine.get_clients()):
            self._send(task, site)
        while desk.fleet.open_round == number and not self._is_over(end):
            try:
                site, answer = self._answers.get(timeout=1.0)
                more = desk.enter(site, answer) if answer else WAIT_ON
                if more is not None:
                    self._send(more, site)
            except queue.Empty:
                pass
            desk.tick()
        self.cancel_all_tasks()

    def _send(self, task: Sent, site: str) -> None:
        data = FLModel(params={name: np.frombuffer(each, np.uint8) for name, each in task._asdict().items()})
        self.broadcast_model(data, TASK, [site], blocking=False, callback=self._receive)

    def _receive(self, answer: FLModel) -> None:
        self._answers.put((answer.meta["client_name"], answer.params["data"].tobytes()))
