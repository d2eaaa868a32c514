"""A coordinator of private windows that may lie, in this process: devices speak to it without a network."""

from __future__ import annotations

import msgspec

from comigs_edge.fleet.client import RemoteRefused
from comigs_edge.fleet.private import PrivateTransport
from coordinator.ledger.window import KINDS, OpenWindow
from coordinator.protocol import keys
from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import WindowNote, decode
from coordinator.protocol.private.cohort import sign_terms
from coordinator.protocol.private.messages import Terms
from coordinator.protocol.rounds import Rules
from tests.coordinator.rig import SHAPES
from tests.fleet.rig import Device, FolderFleet, FolderTransport, step

NUMBERS = sum(a * b for a, b in SHAPES.values())
RULES = Rules(private=True, deadline_seconds=31e6)


class Liar(FolderFleet):
    """One window at a time. `lie(window, device)` changes what a device is shown of it."""

    def __init__(self, root, least=3, key=None):
        super().__init__(root, "masked")
        self.lie = lambda window, device: window
        self.devices, self.asked, self.uploads = {}, [], {}
        self.kept = []  # windows that it says are not over
        self.begin(least, key)

    def begin(self, least=3, key=None):
        terms = Terms(
            fleet="fleet", window=keys.device_id(keys.public_text(keys.new_key())), least=least, bound=1e3, numbers=NUMBERS
        )
        signed = sign_terms(key or self.key, terms)
        self.window = OpenWindow(terms=terms, signed=signed, signing_key=keys.public_text(key or self.key))
        return self.window

    def add(self, root):
        """A device that has generalist 0."""
        device = Device(root)
        key = device.folder.key(makes=True)
        name = keys.device_id(keys.public_text(key))
        device.connect = lambda books: LiarTransport(self, name, key, books)
        device.join_folder(self, name)
        device.transport = None
        device.open()
        self.devices[name] = device
        device.exchange(tokens=0)
        if not self.links:
            self.close()
            device.exchange(tokens=0)
        return device

    def state(self, device):
        state = super().state(device)
        window = self.window
        wants = window.stage if window and device in self.devices and window.wants(device) else ""
        state.windows = [WindowNote(window=window.terms.window, wants=wants)] if window and self.links else []
        state.windows += [WindowNote(window=each) for each in self.kept]
        state.has_contributed = wants != "masked"
        return state

    def ask(self, device, method, path, body):
        """What the server would answer."""
        if self.window is None or self.window.terms.window not in path:
            raise RemoteRefused("no_window", "it is over")
        if method == "GET":
            return self.lie(self.window.seen_by(device), device)
        stage = path.rsplit("/", 1)[1]
        part = decode(body, KINDS[stage])
        self.asked.append((device, stage, part))
        self.take(device, part)
        return self.state(device)

    def take(self, device, part):
        """As an honest one; what does not fit to its own view it takes all the same."""
        try:
            self.window.check(device, part)
        except Refused as error:
            if error.code == "not_wanted":
                raise RemoteRefused("not_wanted", error.message) from error
        self.window.put(device, part, 0.0)

    def go_on(self):
        """To the next stage, with those who are in."""
        self.window.stage = {"keys": "shares", "shares": "masked", "masked": "confirmations", "confirmations": "answers"}[
            self.window.stage
        ]
        if self.window.stage == "masked":
            self.window.head = keys.chain_hash(self.links[-1])

    def touch(self, chosen=None):
        for device in chosen or list(self.devices.values()):
            device.exchange(tokens=0)

    def run_to(self, stage):
        """All devices give what the stages before ask for."""
        while self.window.stage != stage:
            self.touch()
            self.go_on()

    def given(self, stage):
        return [part for _, at, part in self.asked if at == stage]


class LiarTransport(PrivateTransport):
    """A device's way to it."""

    def __init__(self, liar, name, key, books):
        self.liar, self._key = liar, key
        self._set_books(books, name)
        self.folder = FolderTransport(liar, name)
        self.manifests, self.download, self.refuse = self.folder.manifests, self.folder.download, self.folder.refuse

    def state(self):
        return self.liar.state(self._id)

    def bring(self, update, state, leaves, progress):
        return self.folder.exchange(update, leaves, progress)

    def upload(self, data, progress, is_new=False):
        self.liar.uploads.setdefault(self._id, []).append(data)
        return "ab" * 32

    def _ask(self, kind, method, path, body=b""):
        answer = self.liar.ask(self._id, method, path, body)
        return msgspec.convert(msgspec.to_builtins(answer), kind)


def fleet(tmp_path, count, **options):
    """A liar with devices that have learned something, each something else."""
    liar = Liar(tmp_path / "fleet", **options)
    for number in range(count):
        device = liar.add(tmp_path / f"home-{number}")
        device.learn(step(number))
        device.books.note(device.local, 100)
    return liar
