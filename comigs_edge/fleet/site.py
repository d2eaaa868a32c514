"""A home as a site of NVIDIA FLARE: its client's process, and the way of the home's books to their fleet through it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from comigs_edge import __version__, files
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.books import Books
from comigs_edge.fleet.carried import Carried, CarriedTransport
from comigs_edge.fleet.exchange import Exchange
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.generalist import describe_generalist
from comigs_edge.fleet.joining import accept
from comigs_edge.fleet.membership import Membership
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from coordinator.protocol import keys, kits
from coordinator.protocol.messages import Join

SENDING = 5.0  # seconds at the end, for an answer that FLARE has taken


class Site:
    """Of a home, whose FLARE client runs."""

    def __init__(self, home: Home, kit: Path) -> None:
        self.name, self._home, self._folder = kits.name(kit), home, home.root / "flare"
        self.carried = Carried(self._folder)

    def join(self, settings: Config, patience: float) -> Membership | None:
        """Makes the home a member, under the site's name; None where it is one. Raises `Offline`, `ComigsError`."""
        folder = FleetFolder(self._home)
        if folder.is_member:
            return None
        task = self.carried.wait(patience)
        public = keys.public_text(folder.key(makes=True))
        former = folder.former("device", task.pin)
        wish = Join(
            code="", name=self.name, public_key=public, generalist=describe_generalist(self._home, settings), version=__version__,
            former=None if former == keys.device_id(public) else former,
        )  # fmt: skip
        task = self.carried.ask(patience, join=wish)
        if task.joined is None:
            raise ComigsError("the fleet did not say whether this device is a member; type the command again")
        return accept(folder, task.joined, task.address, task.pin, former)

    def connect(self, books: Books, patience: float) -> Exchange:
        """The books' way to their fleet."""
        member = books.membership
        task = self.carried.read()
        if task is not None and task.fleet != member.fleet:
            raise ComigsError("this device is a member of another fleet than FLARE's; leave that one first: comigs-edge leave")
        return Exchange(books, CarriedTransport(self.carried, member.device, patience))


@contextlib.contextmanager
def open_site(home: Home, kit: Path) -> Iterator[Site]:
    """Runs FLARE's client of a kit for this home; what it prints is in flare.log of the home. Raises `ComigsError`."""
    if find_spec("nvflare") is None:
        raise ComigsError("NVIDIA FLARE is not installed here; type: pip install 'comigs-edge[flare]'")
    folder = home.root / "flare"
    for name in ("task", "answer"):
        (folder / name).unlink(missing_ok=True)  # of another time
    files.make_folder(folder)
    process, is_over = kits.Process(kits.find(kit), home.root / "flare.log", {kits.SPOOL: str(folder)}), threading.Event()

    def keep() -> None:
        while not is_over.wait(1.0):
            process.keep()

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield Site(home, kit)
        if (folder / "task").exists():
            is_over.wait(SENDING)
    finally:
        is_over.set()
        keeper.join()
        process.stop()
