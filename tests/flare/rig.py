"""A desk over a coordinator's folder, and sites that stand at it, without an engine between them."""

from __future__ import annotations

import contextlib
import time

from comigs_edge.errors import ComigsError
from comigs_edge.fleet.carried import Carried, CarriedTransport
from coordinator.flare.desk import Desk
from coordinator.flare.spool import Spool
from coordinator.ledger.folder import Folder
from coordinator.protocol import keys, tasks
from coordinator.protocol.messages import Join
from tests.coordinator.rig import generalist
from tests.fleet.rig import BASE, Device


class Site:
    """A home and the two files that an engine's executor carries."""

    def __init__(self, root, name, device=None):
        self.device, self.name, self.folder = device or Device(root), name, root / "flare"
        self.carried, self.spool = Carried(self.folder), Spool(self.folder)

    @property
    def id(self):
        return self.device.folder.membership().device

    def hear(self, task):
        """What the executor does with a task."""
        self.spool.put(b"".join(task))

    @property
    def answer(self):
        """The answer that waits for the executor, once."""
        return self.spool.take()

    def ask_to_join(self, desk):
        """Of a home that belongs to no fleet; returns the task that this brings."""
        self.hear(desk.task(None))
        public = keys.public_text(self.device.folder.key(makes=True))
        wish = Join(code="", name=self.name, public_key=public, generalist=generalist(base=BASE), version="test")
        self.carried.read()
        self.carried.answer(join=wish)
        return self.answer_of(desk)

    def join(self, desk):
        task, _ = tasks.unpack(b"".join(self.ask_to_join(desk)), tasks.Task)
        if task.problem is not None:
            raise ComigsError(task.problem.message)
        joined = task.joined
        self.device.transport = CarriedTransport(self.carried, joined.device, 0.0)
        self.device._join("https://localhost", "ab" * 32, joined.fleet, joined.device, joined.signing_key, joined.settings)
        return self

    def open(self):
        """As a new process would, of a home that is a member."""
        self.device.connect, self.device.transport = None, CarriedTransport(self.carried, self.id, 0.0)
        self.device.open()

    def answer_of(self, desk):
        """Enters the answer that waits; returns the task that it brings, which the site has then."""
        data = self.answer
        more = desk.enter(self.name, data) if data else None
        if more is not None:
            self.hear(more)
        return more


@contextlib.contextmanager
def open_desk(root, clock=time.time, **settings):
    """The desk of a folder whose config.toml says these settings."""
    with Folder.open(root) as folder, folder.fleet(clock, {"update_format": "float32", **settings}) as fleet:
        yield Desk(fleet, folder.pin)


def round_of(desk, sites):
    """Each site gets its task, exchanges, and is answered until it has brought what it has."""
    for site, (_, task) in zip(sites, desk.tasks([site.name for site in sites]), strict=True):
        site.hear(task)
    for site in sites:
        for _ in range(3):
            site.device.exchange()
            if site.answer_of(desk) is None:
                break
    desk.tick()
