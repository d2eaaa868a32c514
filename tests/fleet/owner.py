"""A device's home without a model, whose commands do what the real ones do, each from what lies on the disk."""

import contextlib
from dataclasses import dataclass

from comigs_edge.errors import ComigsError
from comigs_edge.fleet import back, joining
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.private import connect
from comigs_edge.fleet.records import read_record, write_record
from comigs_edge.home.folder import Home
from comigs_edge.home.marks import Mark
from tests.coordinator.rig import arrays, generalist
from tests.fleet.rig import BASE, Device
from tests.fleet.test_exchange import settled


@dataclass
class Facts:
    """The mark of what was learned."""

    word: str | None
    tokens: int


UNIT = 0.25  # of learning: what is beyond 64 is no generalist


class Owner:
    """A home without a model: what it has learned lies in one file, as adapters do, with its mark."""

    def __init__(self, root, coordinator):
        self.root, self.coordinator = root, coordinator
        self.saved = root / "adapters.safetensors"
        self.said = []  # by its exchanges
        self._save(arrays(UNIT), Mark(None, 100))

    def _save(self, learned, mark):
        write_record(self.saved, learned, mark._asdict())

    def _open(self):
        device = Device(self.root)
        device.transport = None
        device.open()
        device._exchange = connect(device.books, 2.0)
        learned, facts = read_record(self.saved, Facts)
        device.local = device.books.resume(learned, facts["word"], facts["tokens"])
        return device

    def _keep(self, device):
        self._save(device.local, Mark(device.books.mark, device.books.standing.unsent_tokens))

    @property
    def value(self):
        return self._open().value

    def learn(self):
        device = self._open()
        device.learn(UNIT)
        device.books.keep(device.local, 100)
        self._keep(device)

    def join(self, link):
        joining.join(Home(self.root), link, None, generalist(base=BASE))

    def sync(self):
        device = self._open()
        assert device.exchange(tokens=0).offline is None
        self.said += device.folder.notes
        self._keep(device)

    def sync_until_quiet(self):
        for _ in range(3):
            self.sync()
            settled(self.coordinator)

    def leave(self):
        folder = FleetFolder(Home(self.root))
        if folder.is_member:  # else the command says that it is in no fleet
            folder.membership()
            folder.leave()

    def roll_back(self):
        device = self._open()
        with contextlib.suppress(ComigsError):  # none is kept that is older
            _, device.local = back.roll_back(device.books, None, device.local)
        self._keep(device)
