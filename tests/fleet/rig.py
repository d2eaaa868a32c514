"""Devices without a model, and a fleet in one folder: no sockets, no process, and no receipts."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np

from comigs_edge.fleet.books import Books
from comigs_edge.fleet.exchange import Exchange
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.http import HTTPTransport
from comigs_edge.fleet.membership import Membership
from comigs_edge.fleet.private import PrivateTransport
from comigs_edge.fleet.transport import News
from comigs_edge.home.folder import Home
from coordinator.protocol import compress, keys, rounds, wire
from coordinator.protocol.aggregate import add_change, aggregate, mean_change
from coordinator.protocol.messages import Join, Manifest, Receipt, Restoration, Settings, State
from tests.coordinator.rig import SHAPES, arrays, generalist, random_arrays

BASE = "ab" * 32
NAME = "generalist.blk.0.ffn_gate.lora_a"


class FolderFleet:
    """Generalists and updates lie in a folder, as on a stick that is carried around; `close` is its coordinator."""

    def __init__(self, root, update_format="float32", averaging="separate", sums=False):
        self.root, self.key = root, keys.new_key()
        self.settings = Settings(local_steps=2, update_format=update_format, averaging=averaging)
        self.links, self.updates, self.refusals, self.counted, self.rounds = [], {}, [], defaultdict(list), {}
        self.norm_limit, self.note = None, None
        self.sums = sums  # adds what the devices learned, in place of the mean: then it is exact for any number of them
        self.tokens, self.content = {}, []  # of each update; ids of the updates that are in each generalist
        root.mkdir()

    def turn_back(self, to):
        """Publishes generalist `to` again, as refusals make a coordinator do."""
        self.content.append(self.content[to])
        self._publish(len(self.links), (self.root / str(to)).read_bytes(), 0, to)

    def restore(self, to, says_so=True, number=1):
        """As from a backup that was made when `to` was the newest generalist."""
        self.links, self.updates, self.content = self.links[: to + 1], {}, self.content[: to + 1]
        for device, ids in self.counted.items():
            self.counted[device] = [each for each in ids if self.rounds[each] <= to]
        if says_so:
            last = keys.chain_hash(self.links[-1]) if self.links else ""
            note = Restoration(fleet="fleet", number=number, round=to, manifest_hash=last)
            self.note = keys.sign_restoration(self.key, note)

    def state(self, device):
        return State(
            open_round=len(self.links), newest=self.links[-1] if self.links else None, settings=self.settings,
            has_contributed=device in self.updates, next_poll_seconds=5.0, counted=self.counted[device][-8:],
            norm_limit=self.norm_limit, restored=self.note,
        )  # fmt: skip

    def remove(self, device):
        """What it brought to the open round is dropped; returns the ids of its updates that count."""
        self.updates.pop(device, None)
        return self.counted[device]

    def arrays(self, number):
        return wire.decode((self.root / str(number)).read_bytes(), "a generalist")

    def close(self):
        """Makes the next generalist of the updates that came."""
        number, changes = len(self.links), []
        for device, update in sorted(self.updates.items()):
            names = rounds.trained_names(SHAPES, update.averaging, update.trained_from + 1)
            change = compress.unpack(update.packed, {name: SHAPES[name] for name in names}, update.update_format)
            stale = 0 if self.sums else rounds.staleness(number - 1, update.trained_from)
            changes.append((change, rounds.weight(rounds.Rules(), stale, update.tokens)))
            self.counted[device].append(update.id)
            self.rounds[update.id], self.tokens[update.id] = number, update.tokens
        before = self.arrays(number - 1) if number else arrays(0.0)
        if number:
            mean = mean_change(before, changes)
            factor = np.float32(len(changes) if self.sums else 1)
            data = wire.encode(add_change(before, {name: array * factor for name, array in mean.items()}))
        else:
            data = wire.encode(aggregate(before, changes))
        known = self.content[-1] if self.content else frozenset()
        self.content.append(known | {update.id for update in self.updates.values()})
        self._publish(number, data, len(changes), None)
        self.updates = {}

    def _publish(self, number, data, devices, again):
        (self.root / str(number)).write_bytes(data)
        manifest = Manifest(
            fleet="fleet", round=number, sha256=hashlib.sha256(data).hexdigest(), size=len(data), base_sha256=BASE,
            previous=keys.chain_hash(self.links[-1]) if self.links else "", devices=devices, rolled_back_to=again,
        )  # fmt: skip
        self.links.append(keys.sign_manifest(self.key, manifest))


class FolderTransport:
    """One device's way to a `FolderFleet`; whether an update counts is heard only after its round has closed."""

    def __init__(self, fleet, device, has_receipts=False):
        self.fleet, self.device, self.has_receipts = fleet, device, has_receipts

    def exchange(self, update, leaves, progress):
        receipt = None
        if update and self.device not in self.fleet.updates and update.id not in self.fleet.counted[self.device]:
            leaves(len(wire.encode(update.packed)), self.fleet.settings)
            self.fleet.updates[self.device] = update
            receipt = Receipt(round=len(self.fleet.links), weight=1.0) if self.has_receipts else None
        state = self.fleet.state(self.device)
        if self.has_receipts and self.device in self.fleet.updates:
            state.counted = [*state.counted, self.fleet.updates[self.device].id]
        return News(state=state, receipt=receipt)

    def manifests(self, after):
        return self.fleet.links[after + 1 :]

    def download(self, manifest, target, progress):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((self.fleet.root / str(manifest.round)).read_bytes())

    def refuse(self, refusal):
        self.fleet.refusals.append(refusal)


class Device:
    """A home in a fleet, without a model: the test is the training."""

    def __init__(self, root, gate=0.1):
        self.home, self.gate = Home(root), gate
        self.folder = FleetFolder(self.home)
        self.initial = self.local = arrays(0.0)
        self.connect = None  # makes the transport for books, unless a test puts another in its place

    def join_folder(self, fleet, name, has_receipts=False):
        """In a `FolderFleet`."""
        self.transport = FolderTransport(fleet, name, has_receipts)
        return self._join("", "", "fleet", name, keys.public_text(fleet.key), fleet.settings)

    def join_coordinator(self, link, patience=2.0):
        """In the fleet of a coordinator."""
        address, code, pin = keys.read_link(link)
        key = self.folder.key(makes=True)
        public = keys.public_text(key)
        self.transport = HTTPTransport(address, pin, key, keys.device_id(public), patience)
        joined = self.transport.join(
            Join(code=code, name=None, public_key=public, generalist=generalist(base=BASE), version="test")
        )
        self.transport = None
        self.connect = lambda books: PrivateTransport(address, pin, key, keys.device_id(public), patience, books)
        return self._join(address, pin.hex(), joined.fleet, joined.device, joined.signing_key, joined.settings)

    def _join(self, address, pin, fleet, device, signing_key, settings):
        self.folder.save_membership(Membership(
            address=address, pin=pin, fleet=fleet, device=device, name=device, signing_key=signing_key, joined="",
            local_steps=settings.local_steps, update_format=settings.update_format, averaging=settings.averaging,
        ))  # fmt: skip
        self.open()
        return self

    def open(self):
        """As a new process would."""
        self.books = Books(self.folder, SHAPES, lambda: self.initial, BASE, self.gate)
        if isinstance(self.transport, PrivateTransport):  # a test may have changed its address or its session
            self.transport._set_books(self.books, self.transport._id)
        elif self.connect and self.transport is None:
            self.transport = self.connect(self.books)
        self._exchange = Exchange(self.books, self.transport)

    def learn(self, value):
        """A training step: every weight changes by `value`, or by arrays."""
        change = arrays(value) if isinstance(value, float) else value
        self.local = {name: array + change[name] for name, array in self.local.items()}

    def exchange(self, tokens=100, judge=None):
        outcome = self._exchange.run(self.local, tokens, judge)
        if outcome.generalist is not None:
            self.local = outcome.generalist
        return outcome

    @property
    def value(self):
        return float(self.local[NAME][0, 0])

    @property
    def reference(self):
        return float(self.books.standing.reference[NAME][0, 0])


def scaled(arrays, factor):
    return {name: array * np.float32(factor) for name, array in arrays.items()}


def step(number, scale=1 / 64):
    """What a device learns in a step, each another thing."""
    return scaled(random_arrays(number), scale)
