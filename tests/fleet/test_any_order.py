"""Whatever happens in whatever order, a device and its fleet come to exactly what was learned: integers add exactly."""

import contextlib
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.back import roll_back
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.home.folder import Home
from tests.fleet.rig import NAME, Device, FolderFleet
from tests.fleet.test_books import offline

STEPS = st.one_of(
    st.tuples(st.just("learn"), st.integers(-3, 3)), st.tuples(st.just("kill"), st.integers(0, 5)),
    st.tuples(st.just("restore"), st.integers(-1, 8)),
    *(st.tuples(st.just(name), st.none()) for name in ("exchange", "offline", "close", "leave", "roll_back", "turn_back")),
)  # fmt: skip


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


class Story:
    """One device and its fleet."""

    def __init__(self, root):
        self.fleet = FolderFleet(root / "fleet")
        self.device = Device(root / "home").join_folder(self.fleet, "device")
        self.home, self.learned, self.restorations = Home(root / "home"), 0, 0
        self.keep()

    def keep(self):
        """A checkpoint."""
        self.saved = dict(self.device.local), self.device.books.mark

    def reopen(self):
        self.device.folder = FleetFolder(self.home)
        self.device.open()
        self.device.local = self.device.books.resume(*self.saved)

    def step(self, name, value):
        device, fleet = self.device, self.fleet
        if name == "learn":
            device.learn(float(value))
            self.learned += value
        elif name == "exchange":
            device.exchange()
        elif name == "offline":
            device.transport.exchange = offline
            device.exchange()
            del device.transport.exchange
        elif name == "kill":
            with killed_after(value):
                device.exchange()
                self.keep()
            self.reopen()
        elif name == "close" and fleet.updates:
            fleet.close()
        elif name == "turn_back" and len(fleet.links) > 1:
            fleet.turn_back(len(fleet.links) - 2)
        elif name == "restore" and value < len(fleet.links) - 1:
            self.restorations += 1
            fleet.restore(value, number=self.restorations)
            device.exchange()
        elif name == "leave":
            member = device.books.membership
            device.folder.leave()
            device.folder.take_up(member.fleet, member.signing_key)
            self.reopen()
        elif name == "roll_back":
            with contextlib.suppress(ComigsError):
                _, device.local = roll_back(device.books, None, device.local)
        self.keep()

    def end(self):
        for _ in range(6):
            self.step("exchange", None)
            self.step("close", None)
        self.step("exchange", None)
        fleet = self.fleet.arrays(len(self.fleet.links) - 1)[NAME][0, 0]
        return float(fleet), self.device.value


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEPS, max_size=25))
def test_in_any_order_nothing_is_lost_and_nothing_counts_twice(steps):
    with tempfile.TemporaryDirectory() as root:
        story = Story(Path(root))
        for name, value in steps:
            story.step(name, value)
        assert story.end() == (story.learned, story.learned)
