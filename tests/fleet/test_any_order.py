"""Whatever happens in whatever order, a device and its fleet come to exactly what was learned: integers add exactly."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.fleet import joining
from comigs_edge.fleet.back import roll_back
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.home.folder import Home
from tests.fleet.rig import NAME, Device, FolderFleet
from tests.fleet.test_books import offline

NAMES = ("exchange", "offline", "close", "leave", "roll_back", "turn_back", "reboot", "remove")
EXAMPLES = int(os.environ.get("COMIGS_EDGE_EXAMPLES", "20"))


def steps(oldest):
    """Of two devices; the coordinator is restored to generalist `oldest` or a later one."""
    return st.tuples(st.integers(0, 1), st.one_of(
        st.tuples(st.just("learn"), st.integers(-3, 3)), st.tuples(st.just("kill"), st.integers(0, 5)),
        st.tuples(st.just("restore"), st.integers(oldest, 8)), *(st.tuples(st.just(name), st.none()) for name in NAMES),
    ))  # fmt: skip


class Killed(BaseException):
    """The power goes."""


@contextlib.contextmanager
def killed_after(writes):
    """The power goes instead of the next write of a file."""
    real, left = files.atomic_writer, writes

    @contextlib.contextmanager
    def counted(path):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        with real(path) as file:
            yield file

    files.atomic_writer = counted
    try:
        yield
    except Killed:
        pass
    finally:
        files.atomic_writer = real


class Owner:
    """A device with its checkpoint."""

    def __init__(self, root, fleet, has_receipts):
        self.device = Device(root).join_folder(fleet, root.name, has_receipts)
        self.home, self.tokens = Home(root), 0
        self.keep()

    def keep(self):
        """A checkpoint: the generalist, and what it has learned that no update brought."""
        device = self.device
        self.saved = dict(device.local), device.books.mark, device.books.standing.unsent_tokens + self.tokens

    def reopen(self):
        self.device.folder = FleetFolder(self.home)
        self.device.open()
        self.device.local = self.device.books.resume(*self.saved)
        self.tokens = 0

    def exchange(self):
        tokens, self.tokens = self.tokens, 0
        self.device.exchange(tokens)


class Story:
    """Devices and their fleet, which adds what they learned."""

    def __init__(self, root, count, has_receipts):
        self.fleet = FolderFleet(root / "fleet", sums=True)
        self.owners = [Owner(root / f"device-{number}", self.fleet, has_receipts) for number in range(count)]
        self.learned, self.trained, self.restorations = 0, 0, 0
        self.went_back = False  # whether somebody refuses the present generalist, and waits for the next

    def step(self, owner, name, value):
        device, fleet = owner.device, self.fleet
        if name == "learn":
            device.learn(float(value))
            owner.tokens += 1
            self.learned, self.trained = self.learned + value, self.trained + 1
        elif name == "exchange":
            owner.exchange()
        elif name == "offline":
            device.transport.exchange = offline
            owner.exchange()
            del device.transport.exchange
        elif name == "kill":
            with killed_after(value):
                owner.exchange()
                owner.keep()
            owner.reopen()
        elif name == "reboot":
            owner.reopen()
        elif name == "close" and fleet.updates:
            fleet.close()
        elif name == "turn_back" and len(fleet.links) > 1:
            fleet.turn_back(len(fleet.links) - 2)
        elif name == "restore" and value < len(fleet.links) - 1:
            self.restorations += 1
            fleet.restore(value, number=self.restorations)
            for each in self.owners:
                each.exchange()
                each.keep()
        elif name == "leave":
            member = device.books.membership
            device.folder.leave()
            device.folder.take_up(member.fleet, member.signing_key)
            owner.reopen()
        elif name == "remove":
            member = device.books.membership
            joining.note_counted(device.folder, member, fleet.remove(device.transport.device), member.device, None)
            owner.reopen()
        elif name == "roll_back":
            with contextlib.suppress(ComigsError):
                _, device.local = roll_back(device.books, None, device.local)
                self.went_back = True
        owner.keep()

    def end(self):
        if self.went_back:
            self.step(self.owners[0], "learn", 1)  # of which there is a next one
        for _ in range(8):
            for owner in self.owners:
                self.step(owner, "exchange", None)
            self.step(self.owners[0], "close", None)
        for owner in self.owners:
            self.step(owner, "exchange", None)
        fleet = self.fleet.arrays(len(self.fleet.links) - 1)[NAME][0, 0]
        return [float(fleet), *(owner.device.value for owner in self.owners)]

    @property
    def counted(self):
        """Tokens of the updates that are in the newest generalist."""
        return sum(self.fleet.tokens[each] for each in self.fleet.content[-1])


@pytest.mark.parametrize("has_receipts", [False, True])
@pytest.mark.parametrize("count", [1, 2])
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_in_any_order_nothing_is_lost_and_nothing_counts_twice(count, has_receipts, data):
    with tempfile.TemporaryDirectory() as root:
        story = Story(Path(root), count, has_receipts)
        for number, (name, value) in data.draw(st.lists(steps(-1 if count == 1 else 0), max_size=25)):
            story.step(story.owners[number % count], name, value)
        assert story.end() == [story.learned] * (1 + count)
        assert story.counted == story.trained


@pytest.mark.parametrize("writes", range(6))
def test_of_what_nobody_trained_a_restoration_makes_no_tokens(tmp_path, writes):
    story = Story(tmp_path, 1, has_receipts=True)
    for name, value in (("exchange", None), ("close", None), ("kill", writes), ("restore", -1)):
        story.step(story.owners[0], name, value)
    assert (story.end(), story.counted) == ([0, 0], 0)
