"""Whatever devices, network and power do in whatever order: the coordinator's ledger and generalists are those of a simple model.

The model is what the protocol promises, written without looking at the ledger: lists of who brought which number to which round,
and means worked out in fractions. Updates are arrays full of one number, so that a generalist is one number as well.
"""

import contextlib
import math
import tempfile
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from coordinator.protocol import keys, wire
from coordinator.protocol.aggregate import SCALE
from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import Commit, Refusal
from tests.coordinator.ledger.test_damage import changed, gone, short
from tests.coordinator.ledger.test_fleet import Room, arrays, sha

ONE = 65536
DEADLINE = 100.0
NUMBERS = st.sampled_from([sign * n / 8 for n in (8, 9, 10, 11) for sign in (1, -1)])  # no norm is 1.5 times another's
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # what fsync promises is for other tests


class Model:
    """What must be true, in plain lists."""

    def __init__(self, goal):
        self.goal = goal
        self.members, self.revoked = [], set()
        self.joined_at = {}  # the newest generalist then
        self.rounds = [{}]  # number -> device -> (value, weight); the last one is open
        self.first = None  # when the open round's first update came
        self.values = []  # of the generalists, as float32; len(values) - 1 is the newest
        self.content = []  # the number under which each one's content was published first
        self.refusals = defaultdict(set)  # by generalist
        self.acknowledged = {}  # (device, value, trained_from) -> round

    @property
    def open(self):
        return len(self.rounds) - 1

    @property
    def newest(self):
        return len(self.values) - 1

    @property
    def active(self):
        return [device for device in self.members if device not in self.revoked]

    def close_if_complete(self, now):
        since = self.open - 5  # of max_staleness and 5 the larger
        lately = set().union(*self.rounds[max(0, since) :])
        updates = len(self.rounds[-1])
        active = sum(device in lately or self.joined_at[device] >= since for device in self.active)
        if not updates:
            return
        goal = 1 if self.open == 0 else max(1, min(self.goal or active, active))
        late = now - self.first >= DEADLINE and updates >= max(1, math.ceil(Fraction(active, 2)))
        if updates >= goal or late:
            self.rounds.append({})
            self.first = None

    def publish(self):
        while len(self.values) < self.open:
            rows = self.rounds[len(self.values)].values()
            before = self.values[-1] if self.values else np.float32(0)
            change = sum(round(Fraction(value) * SCALE) * weight for value, weight in rows)
            change = Fraction(change, SCALE * sum(weight for _, weight in rows))
            self.content.append(len(self.values))
            change = np.float16(float(change)) if self.values else float(change)
            self.values.append(np.float32(min(64.0, max(-64.0, float(np.float32(before) + np.float32(change))))))

    def believed(self, number):
        """Who refuses this generalist, without those that refused three of the last five that others made, or their copies."""
        refusing = self.refusals[number] - self.revoked
        made = [other for other, content in enumerate(self.content) if content == other and set(self.rounds[other]) - refusing][
            -5:
        ]
        refused = {device: {self.content[at] for at, known in self.refusals.items() if device in known} for device in refusing}
        often = {device for device in refusing if len(refused[device] & set(made)) >= 3}
        return refusing if 2 * len(refusing) > len(self.active) else refusing - often


class FleetMachine(RuleBasedStateMachine):
    """Rules are what happens, invariants what holds after each."""

    @initialize(goal=st.sampled_from([0, 0, 2, 3, 1]), update_format=st.sampled_from(["float32", "float16"]))
    def begin(self, goal, update_format):
        self.folder = tempfile.TemporaryDirectory(prefix="comigs-machine-", dir=MEMORY)
        root = Path(self.folder.name) / "room"
        rules = {"goal": goal, "deadline_seconds": DEADLINE, "max_staleness": 3, "active_seconds": 1e8}
        self.room, self.model = Room(root, update_format, **rules), Model(goal)
        self.codes, self.tried = [], []
        for _ in range(3):
            self.join()
        self.manifests = []

    def teardown(self):
        if hasattr(self, "room"):
            self.room.fleet.database.close()
            self.folder.cleanup()

    def device(self, data, of=None):
        return data.draw(st.sampled_from(of or self.model.active))

    def handle(self, identity):
        return self.room.members.devices[identity]

    # What happens -------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.members) < 6)
    @rule()
    def join(self):
        code, key = self.room.code(), keys.new_key()
        device = self.room.join(code=code, key=key)
        assert self.room.join(code=code, key=key).id == device.id  # the answer was lost
        self.codes.append(code)
        self.model.members.append(device.id)
        self.model.joined_at[device.id] = self.model.newest

    @rule(data=st.data())
    def join_with_a_used_code(self, data):
        with pytest.raises(Refused, match="used already"):
            self.room.join(code=data.draw(st.sampled_from(self.codes)))

    def expected(self, device, value, trained_from, number):
        """What the protocol says to a commit: a round, or the word of the refusal."""
        model = self.model
        if (device, value, trained_from) in model.acknowledged:
            return model.acknowledged[device, value, trained_from]
        if device in model.revoked:
            return "revoked"
        if number != model.open:
            return "stale_round"
        if device in model.rounds[-1]:
            return "already_counted"
        if not (trained_from == -1 if model.open == 0 else 0 <= trained_from <= model.newest):
            return "wrong_generalist"
        if model.newest - trained_from > 3:
            return "too_stale"
        return number

    @rule(
        data=st.data(),
        value=NUMBERS,
        behind=st.sampled_from([0] * 6 + [1, 1, 2, 3, 5]),
        ahead=st.sampled_from([0] * 10 + [-1, 1]),
        stops=st.sampled_from(["", "", "", "after half", "after all", "after the check", "after the answer"]),
    )
    def bring(self, data, value, behind, ahead, stops):
        """An upload and its commit, which a crash may cut anywhere; afterwards the device does it again."""
        device = self.device(data, self.model.members)
        trained_from, number = self.model.newest - behind, self.model.open + ahead
        self.tried.append((device, value, trained_from))
        self.send(device, value, trained_from, number, stops)
        if stops:
            self.send(device, value, trained_from, number, "")

    @rule(data=st.data(), values=st.lists(NUMBERS, min_size=6, max_size=6))
    def a_whole_round(self, data, values):
        """All devices bring what they have, some of it late; so that the fleet gets somewhere."""
        for device, value in zip(self.model.active, values, strict=False):
            behind = data.draw(st.sampled_from([0, 0, 0, 1, 3])) if self.model.newest >= 3 else 0
            self.tried.append((device, value, self.model.newest - behind))
            self.send(*self.tried[-1], self.model.open, "")
        self.publish()

    @precondition(lambda self: self.tried)
    @rule(data=st.data())
    def bring_again(self, data):
        """The answer was lost, perhaps long ago."""
        self.send(*data.draw(st.sampled_from(self.tried)), self.model.open, "")

    def send(self, device, value, trained_from, number, stops):
        expected = self.expected(device, value, trained_from, number)
        try:
            found = self.attempt(device, value, trained_from, number, stops)
        except Refused as error:
            found = error.code
        if stops in ("after half", "after all", "after the check"):
            self.room.crash()
            return
        if stops == "after the answer":
            self.room.crash()
        assert found == expected
        if isinstance(found, int) and (device, value, trained_from) not in self.model.acknowledged:
            weight = max(1, round(ONE / math.sqrt(1 + self.model.newest - trained_from)))
            if not self.model.rounds[-1]:
                self.model.first = self.room.now
            self.model.rounds[-1][device] = (value, weight)
            self.model.acknowledged[device, value, trained_from] = found
            self.model.close_if_complete(self.room.now)

    def attempt(self, device, value, trained_from, number, stops):
        room, handle = self.room, self.handle(device)
        format_name = "float32" if trained_from < 0 else room.config.training.update_format
        data = wire.encode({name: array.astype(format_name) for name, array in arrays(value).items()})
        wish = Commit(sha256=sha(data), trained_from=trained_from, tokens=1, expected_round=number)
        here = room.fleet.payloads.offset(device, wish.sha256)
        for end in (len(data) // 2, len(data)):
            if here < end:
                here = room.fleet.payloads.append(device, wish.sha256, here, data[here:end])
            if stops == "after half":
                return None
        if stops == "after all":
            return None
        receipt = room.fleet.receipt_if_counted(handle, wish)
        if receipt is None:
            with room.fleet.payloads.hold(wish.sha256):
                size = room.fleet.check_upload(handle, wish, room.fleet.table(wish.trained_from))
                if stops == "after the check":
                    return None
                receipt = room.fleet.record(handle, wish, size)
        return receipt.round

    @rule()
    def publish(self):
        self.room.publish()
        self.model.publish()

    @rule()
    def crash_and_start(self):
        self.room.crash()

    @precondition(lambda self: self.model.rounds[-1])
    @rule(data=st.data(), damage=st.sampled_from([gone, short, changed]))
    def a_waiting_update_is_damaged_before_a_start(self, data, damage):
        """It is left out and may come again; everything else stays as it is."""
        room, model = self.room, self.model
        self.publish()
        if not model.rounds[-1]:
            return
        device = data.draw(st.sampled_from(list(model.rounds[-1])))  # in the order that they came: ids are random
        query = "SELECT sha256 FROM updates WHERE round = ? AND device = ? AND lost IS NULL"
        sha256 = room.fleet.database.value(query, model.open, device)
        if room.fleet.database.value("SELECT 1 FROM rounds WHERE sha256 = ?", sha256):
            return  # the same bytes are a generalist, whose loss is another rule
        rows = room.fleet.database.rows(
            "SELECT device FROM updates WHERE round = ? AND sha256 = ? AND lost IS NULL", model.open, sha256
        )
        damage(room.fleet.payloads.path(sha256))
        room.crash()
        for row in rows:  # devices that learned the same
            del model.rounds[-1][row["device"]]
            model.acknowledged = {k: n for k, n in model.acknowledged.items() if k[0] != row["device"] or n != model.open}
        model.first = room.fleet.updates_in()[1]

    @precondition(lambda self: self.model.newest >= 1)
    @rule(damage=st.sampled_from([gone, short, changed]))
    def the_newest_generalist_is_damaged_before_a_start(self, damage):
        """The one before comes again, where it is another and is kept; the waiting updates move on."""
        self.publish()
        room, model = self.room, self.model
        newest = self.digest(model.newest)
        target = self.kept_before(model.newest, without=newest)
        if target is None or not room.fleet.payloads.path(newest).exists():
            return
        query = "SELECT change_sha256 FROM rounds WHERE sha256 = ? AND change_sha256 IS NOT NULL"
        changes = {row["change_sha256"] for row in room.fleet.database.rows(query, newest)}
        waiting = {row["sha256"] for row in room.fleet.database.rows("SELECT sha256 FROM updates WHERE round = ?", model.open)}
        if {newest, *changes} & waiting:  # the same bytes are two things
            return
        damage(room.fleet.payloads.path(newest))
        for change in changes:  # else it is made again
            room.fleet.payloads.drop(change)
        room.crash()
        moved = model.rounds.pop()
        model.acknowledged = {k: n + (n == len(model.rounds)) for k, n in model.acknowledged.items()}
        model.rounds += [{}, moved]
        model.values.append(model.values[target])
        model.content.append(target)

    def digest(self, number):
        return self.room.fleet.database.value("SELECT sha256 FROM rounds WHERE number = ?", number)

    def kept_before(self, number, without=""):
        """The last generalist before this one whose file is there; None without one."""
        target = self.model.content[number]
        while target > 0:
            target = self.model.content[target - 1]
            if self.digest(target) != without and self.room.fleet.payloads.path(self.digest(target)).exists():
                return target
        return None

    @rule(seconds=st.sampled_from([1.0, DEADLINE / 2, DEADLINE]))
    def time_passes(self, seconds):
        self.room.now += seconds
        self.room.fleet.close_if_complete()
        self.model.close_if_complete(self.room.now)

    @precondition(lambda self: len(self.model.active) > 1)
    @rule(data=st.data())
    def revoke(self, data):
        device = self.device(data)
        self.room.fleet.revoke(self.handle(device).name)
        model = self.model
        model.revoked.add(device)
        if model.rounds[-1].pop(device, None):
            model.acknowledged = {k: n for k, n in model.acknowledged.items() if k[0] != device or n != model.open}
            row = self.room.fleet.database.value("SELECT min(received) FROM updates WHERE round = ?", model.open)
            model.first = row  # the next one's
        model.close_if_complete(self.room.now)

    @precondition(lambda self: self.model.newest >= 0)
    @rule(data=st.data(), behind=st.sampled_from([0, 0, 0, 1]))
    def refuse(self, data, behind):
        device, model = self.device(data), self.model
        number, waits = model.newest - behind, len(model.values) < model.open
        refusal = Refusal(round=number, loss_before=1.0, loss_after=2.0)
        if behind or number < 1:
            before = self.room.ledger()
            with contextlib.suppress(Refused):  # or the same answer again
                self.room.fleet.refuse(self.handle(device), refusal)
            assert self.room.ledger() == before
            return
        good = self.kept_before(model.newest)
        self.room.fleet.refuse(self.handle(device), refusal)
        model.refusals[number].add(device)
        # A refusal that is told again counts once, and is looked at again: fewer may be enough where devices were revoked since.
        active = len(model.active)
        enough = max(math.ceil(Fraction(active, 3)), min(2, active - 1))
        if waits or good is None or len(model.believed(number)) < enough:
            return
        moved = model.rounds.pop()
        model.acknowledged = {k: n + (n == len(model.rounds)) for k, n in model.acknowledged.items()}
        model.rounds += [{}, moved]
        model.values.append(model.values[good])
        model.content.append(good)

    # What holds ---------------------------------------------------------------------------------------------------

    @invariant()
    def every_acknowledged_update_counts_once_and_nothing_else_does(self):
        if not hasattr(self, "room"):
            return
        rows = self.room.fleet.database.rows(
            "SELECT device, round, weight FROM updates WHERE lost IS NULL ORDER BY round, device"
        )
        found = [(row["round"], row["device"], row["weight"]) for row in rows]
        model = self.model
        assert found == sorted((n, d, w) for n, updates in enumerate(model.rounds) for d, (_, w) in updates.items())
        assert self.room.fleet.open_round == model.open

    @invariant()
    def the_newest_generalist_is_the_mean_worked_in_fractions(self):
        if not hasattr(self, "room"):
            return
        assert self.room.chain.newest_number == self.model.newest
        if self.model.values:
            assert self.room.value() == self.model.values[-1]

    @invariant()
    def the_manifests_are_a_chain_that_only_grows(self):
        if not hasattr(self, "manifests"):
            return
        found = self.room.chain.manifests(-1)
        assert found[: len(self.manifests)] == self.manifests
        opened = [keys.open_manifest(signed, self.room.chain.signing_key) for signed in found]
        assert [manifest.round for manifest in opened] == list(range(len(self.model.values)))
        assert [manifest.previous for manifest in opened] == ["", *map(keys.chain_hash, found[:-1])][: len(found)]
        self.manifests = found

    @invariant()
    def no_payload_is_lost_that_somebody_needs(self):
        if not hasattr(self, "room"):
            return
        rows = self.room.fleet.database.rows(
            "SELECT updates.sha256 FROM updates JOIN rounds ON number = round WHERE published IS NULL AND updates.lost IS NULL"
        )
        assert all(self.room.fleet.payloads.path(row["sha256"]).exists() for row in rows)


CALM = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def run(examples, steps):
    profile = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=CALM)
    run_state_machine_as_test(FleetMachine, settings=profile)


def test_the_coordinator_does_what_the_model_says():
    run(100, 30)


@pytest.mark.torture
def test_the_coordinator_does_what_the_model_says_for_long():
    run(2000, 60)
