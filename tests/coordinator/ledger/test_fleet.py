"""What counts in which round, on a real ledger and real files; every refusal is also looked at for what it did not change."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest

from coordinator.ledger.config import Config, Training
from coordinator.ledger.database import Database
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.folder import Folder
from coordinator.ledger.making import Damaged, make_generalist
from coordinator.ledger.overview import overview
from coordinator.ledger.payloads import Payloads
from coordinator.protocol import compress, keys, wire
from coordinator.protocol.errors import CoordinatorError, Refused
from coordinator.protocol.messages import Commit, Generalist, Join, Refusal
from coordinator.protocol.rounds import ONE, Rules

SHAPES = {"generalist.blk.0.ffn_up.lora_a": (2, 3), "generalist.blk.0.ffn_up.lora_b": (3, 2)}
PIN = bytes(32)


def arrays(value, names=SHAPES):
    return {name: np.full(SHAPES[name], value, np.float32) for name in names}


def generalist(**changes):
    fields = {"base_name": "tiny", "base_sha256": "ab" * 32, "form": "lora", "scale": 4.0, "tensors": SHAPES}
    return Generalist(**{**fields, **changes})


class Room:
    """A fleet without sockets; `now` is its clock."""

    def __init__(self, root, update_format="float32", now=1e9, **rules):
        self.root, self.now = root, now
        self.config = Config(Rules(**rules), Training(update_format=update_format))
        root.mkdir(exist_ok=True)
        self.start()

    def start(self, clock=None):
        self.key, clock = Folder(self.root).signing_key, clock or (lambda: self.now)
        self.fleet = Fleet(Database(self.root / "coordinator.db"), Payloads(self.root), self.key, self.config, clock)
        self.members, self.chain = self.fleet.members, self.fleet.chain

    def crash(self):
        """The process is gone without a word, and comes again."""
        self.fleet.database.close()
        self.start()

    def code(self, name=None):
        return keys.read_link(self.members.invite(name, "https://pi:8443", PIN)["link"])[1]

    def wish(self, code=None, key=None, name=None, found=None):
        public = keys.public_text(key or keys.new_key())
        return Join(code=code or self.code(), name=name, public_key=public, generalist=found or generalist(), version="1")

    def join(self, **options):
        return self.members.devices[self.fleet.join(self.wish(**options)).device]

    def publish(self):
        while (job := self.chain.next_job(self.members.generalist)) is not None:
            try:
                made = make_generalist(job, self.fleet.payloads)
            except Damaged as error:
                self.fleet.lose(error.payloads)
            else:
                self.chain.publish(job, made)

    def commit(self, device, update, trained_from=None, expected_round=None, tokens=1000, loss=None, update_id=None):
        """Uploads in two pieces and commits, as the server does; `update` is arrays or bytes."""
        newest = self.chain.newest_number
        trained_from = newest if trained_from is None else trained_from
        if not isinstance(update, bytes):
            format_name = compress.update_format(self.config.training.update_format, trained_from)
            update = wire.encode(compress.pack(update, format_name))
        wish = Commit(
            sha256=sha(update), trained_from=trained_from, tokens=tokens, validation_loss=loss, update_id=update_id,
            expected_round=self.fleet.open_round if expected_round is None else expected_round,
        )  # fmt: skip
        payloads = self.fleet.payloads
        for start in (0, len(update) // 2):
            if payloads.offset(device.id, wish.sha256) == start:
                end = len(update) // 2 if start == 0 else len(update)
                payloads.append(device.id, wish.sha256, start, update[start:end])
        return self.send(device, wish)

    def send(self, device, wish):
        receipt = self.fleet.receipt_if_counted(device, wish)
        if receipt is None:
            with self.fleet.payloads.hold(wish.sha256):
                size = self.fleet.check_upload(device, wish, self.fleet.table(wish.trained_from))
                receipt = self.fleet.record(device, wish, size)
        return receipt

    def step(self, *updates, **options):
        """A round: these (device, update) pairs, then the generalist."""
        for device, update in updates:
            self.commit(device, update, **options)
        self.fleet.close_if_complete()
        self.publish()

    def newest(self):
        number = self.chain.newest_number
        sha256 = self.fleet.database.value("SELECT sha256 FROM rounds WHERE number = ?", number)
        return wire.decode(self.fleet.payloads.path(sha256).read_bytes(), "x")

    def value(self):
        """The number that the newest generalist is full of."""
        found = {array.item() for whole in self.newest().values() for array in np.unique(whole)}
        assert len(found) == 1
        return found.pop()

    def ledger(self):
        tables = ("facts", "invitations", "devices", "rounds", "updates", "refusals")
        return {table: self.fleet.database.rows(f"SELECT * FROM {table}") for table in tables}


def sha(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def room(tmp_path):
    found = Room(tmp_path / "room")
    yield found
    found.fleet.database.close()


def refused(kind, action, /, *arguments, **options):
    with pytest.raises(Refused) as error:
        action(*arguments, **options)
    assert error.value.code == kind, error.value.message
    assert error.value.message
    return error.value


def test_one_device_alone_is_a_working_fleet(room):
    device = room.join()
    room.step((device, arrays(1.0)))
    assert (room.chain.newest_number, room.value()) == (0, 1.0)
    for number in range(1, 4):
        room.step((device, arrays(0.5)))
        assert (room.chain.newest_number, room.value()) == (number, 1.0 + 0.5 * number)


def test_a_round_waits_for_all_active_devices_and_not_for_those_that_are_away(room):
    first, second, away = (room.join() for _ in range(3))
    room.step((first, arrays(0.0)))
    room.step((first, arrays(2.5)), (second, arrays(3.0)))
    assert room.chain.newest_number == 0
    room.step((away, arrays(3.5)))
    assert room.value() == 3.0
    room.now += room.config.rounds.active_seconds + 1
    for device in (first, second):
        room.members.record_contact(device, 0, 0)
    room.step((first, arrays(1.0)), (second, arrays(2.0)))
    assert room.value() == 4.5


def test_the_deadline_runs_from_the_first_update_and_asks_for_half_of_the_fleet(room):
    devices = [room.join() for _ in range(4)]
    room.step((devices[0], arrays(0.0)))
    room.now += 5000
    room.step((devices[0], arrays(2.5)))
    room.now += 1800
    assert not room.fleet.close_if_complete()  # one of four
    room.commit(devices[1], arrays(3.5))
    room.publish()
    assert (room.chain.newest_number, room.value()) == (1, 3.0)
    room.commit(devices[0], arrays(2.0))
    room.commit(devices[1], arrays(2.0))
    room.now += 1799.9
    assert not room.fleet.close_if_complete()
    room.now += 0.1
    assert room.fleet.close_if_complete()


def test_a_device_counts_once_in_a_round_whatever_it_sends(room):
    first, second = room.join(), room.join()
    room.step((first, arrays(0.0)))
    receipt = room.commit(first, arrays(1.0))
    for _ in range(3):
        assert room.commit(first, arrays(1.0)) == receipt  # the answer was lost
    refused("already_counted", room.commit, first, arrays(9.0))
    room.step((second, arrays(1.25)))
    assert room.value() == 1.125
    assert room.commit(first, arrays(1.0), trained_from=0, expected_round=1) == receipt  # long after
    assert room.commit(first, arrays(1.0), trained_from=0, expected_round=2) == receipt
    assert room.fleet.database.value("SELECT count(*) FROM updates") == 3


def test_a_late_update_counts_less_and_one_too_late_not_at_all(room):
    room.config = replace(room.config, rounds=Rules(goal=1, max_staleness=3))
    room.crash()
    first, late = room.join(), room.join()
    for _ in range(4):
        room.step((first, arrays(0.0)))
    assert room.commit(late, arrays(8.0), trained_from=0).weight == pytest.approx(0.5, abs=1e-5)  # 1 / sqrt(1 + 3)
    room.publish()
    assert room.value() == 8.0
    before = room.ledger()
    refused("too_stale", room.commit, late, arrays(7.0), trained_from=0)
    assert room.ledger() == before


def test_a_mean_of_late_and_fresh_is_that_worked_by_hand(tmp_path):
    room = Room(tmp_path / "room", goal=2)
    first, second, late = (room.join() for _ in range(3))
    room.step((first, arrays(0.0)))
    for _ in range(3):
        room.step((first, arrays(0.0)), (second, arrays(0.0)))
    room.step((first, arrays(3.0)), (late, arrays(4.0)), trained_from=None)
    base = room.value()
    assert base == 3.5
    room.commit(first, arrays(3.0))
    room.commit(late, arrays(4.0), trained_from=1)  # three behind: half
    room.publish()
    assert room.value() == np.float32(3.5) + np.float16((3.0 + 0.5 * 4.0) / 1.5)


def test_by_tokens_a_device_counts_as_it_trained(tmp_path):
    room = Room(tmp_path / "room", weights="tokens")
    first, second = room.join(), room.join()
    room.step((first, arrays(0.0)))
    room.commit(first, arrays(4.0), tokens=100 * 1024)
    room.commit(second, arrays(5.0), tokens=300 * 1024)
    room.publish()
    assert room.value() == 4.75


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"expected_round": 0}, "stale_round"),
        ({"expected_round": 2}, "stale_round"),
        ({"trained_from": 1}, "wrong_generalist"),
        ({"trained_from": -1}, "wrong_generalist"),
        ({"tokens": -1}, "bad_commit"),
        ({"tokens": 1 << 53}, "bad_commit"),
        ({"loss": math.inf}, "bad_commit"),
        ({"loss": math.nan}, "bad_commit"),
    ],
)
def test_a_refused_commit_changes_nothing(room, changes, code):
    device = room.join()
    room.step((device, arrays(0.0)))
    before = room.ledger()
    refused(code, room.commit, device, arrays(1.0), **changes)
    assert room.ledger() == before


def test_no_second_first_generalist_gets_into_round_one_before_the_first_is_made(room):
    first, second = room.join(), room.join()
    room.commit(first, arrays(5.0))
    assert (room.fleet.open_round, room.chain.newest_number) == (1, -1)
    before = room.ledger()
    refused("wrong_generalist", room.commit, second, arrays(5.0), trained_from=-1)
    assert room.ledger() == before
    room.publish()
    assert room.value() == 5.0


BAD_UPDATES = {
    "nothing": (b"", "incomplete"),
    "short": (wire.encode(arrays(1.0))[:-1], "incomplete"),
    "long": (wire.encode(arrays(1.0)) + b"\0", "incomplete"),
    "nan": (wire.encode(arrays(np.nan)), "bad_update"),
    "inf": (wire.encode(arrays(-np.inf)), "bad_update"),
    "large": (wire.encode(arrays(64.01)), "bad_update"),
    "turned": (wire.encode({name: array.T for name, array in arrays(1.0).items()}), "bad_update"),
}


@pytest.mark.parametrize("name", BAD_UPDATES)
def test_a_bad_update_changes_nothing_and_a_good_one_follows(room, name):
    data, code = BAD_UPDATES[name]
    device = room.join()
    room.step((device, arrays(0.0)))
    before = room.ledger()
    refused(code, room.commit, device, data)
    assert room.ledger() == before
    left = {"incomplete": len(data), "bad_update": 0}  # what can still become one waits for its rest
    assert room.fleet.payloads.offset(device.id, sha(data)) == left[code]
    room.step((device, arrays(1.0)))
    assert room.value() == 1.0


@pytest.mark.parametrize(("level", "scale"), [(127, 64.0), (-128, 0.5005), (1, 65504.0), (127, -1.0)])
def test_int8_updates_whose_product_is_too_large_are_refused_before_they_count(tmp_path, level, scale):
    room = Room(tmp_path / "room", update_format="int8")
    device = room.join()
    room.step((device, arrays(0.0)))
    packed = compress.pack(arrays(0.0), "int8")
    name = next(iter(SHAPES))
    packed[name][0, 0], packed[name + compress.SCALES][0] = level, scale
    before = room.ledger()
    refused("bad_update", room.commit, device, wire.encode(packed))
    assert room.ledger() == before


def test_an_upload_that_is_not_what_was_announced_is_dropped(room):
    device = room.join()
    data = wire.encode(arrays(1.0))
    wish = Commit(sha256="00" * 32, trained_from=-1, tokens=1, expected_round=0)
    room.fleet.payloads.append(device.id, wish.sha256, 0, data)
    refused("wrong_digest", room.send, device, wish)
    assert room.fleet.payloads.offset(device.id, wish.sha256) == 0


def test_a_revoked_device_does_not_count_in_the_open_round_and_is_not_waited_for(room):
    first, second, lost = (room.join(name=name) for name in ("first", "second", "lost"))
    room.step((first, arrays(0.0)))
    room.step((lost, arrays(9.0)), (first, arrays(1.0)))
    room.fleet.revoke("lost")
    assert room.fleet.open_round == 1
    room.step((second, arrays(1.25)))
    assert room.value() == 1.125
    assert room.fleet.database.value("SELECT count(*) FROM updates WHERE device = ?", lost.id) == 0


def test_a_revocation_completes_the_round_that_waited_for_the_device(room):
    first, _ = room.join(), room.join(name="lost")
    room.step((first, arrays(0.0)))
    room.step((first, arrays(1.0)))
    assert room.chain.newest_number == 0
    room.fleet.revoke("lost")
    room.publish()
    assert room.value() == 1.0


def test_a_device_that_is_revoked_while_its_upload_is_checked_does_not_count(room):
    first, lost = room.join(), room.join(name="lost")
    room.step((first, arrays(0.0)))
    data = wire.encode(arrays(9.0))
    room.fleet.payloads.append(lost.id, sha(data), 0, data)
    wish = Commit(sha256=sha(data), trained_from=0, tokens=1, expected_round=1)
    size = room.fleet.check_upload(lost, wish, room.fleet.table(wish.trained_from))
    room.fleet.revoke("lost")
    before = room.ledger()
    refused("revoked", room.fleet.record, lost, wish, size)
    assert room.ledger() == before


def test_an_update_that_was_sent_twice_at_once_counts_once(room):
    first, second = room.join(), room.join()
    room.step((first, arrays(0.0)))
    data = wire.encode(arrays(9.0))
    room.fleet.payloads.append(second.id, sha(data), 0, data)
    wish = Commit(sha256=sha(data), trained_from=0, tokens=1, expected_round=1, update_id="0a")
    checked = [room.fleet.check_upload(second, wish, room.fleet.table(wish.trained_from)) for _ in range(2)]
    receipts = [room.fleet.record(second, wish, each) for each in checked]
    assert receipts[0] == receipts[1]
    assert room.fleet.database.value("SELECT count(*) FROM updates WHERE device = ?", second.id) == 1


def test_what_closed_meanwhile_is_refused_after_the_check_too(room):
    first, second = room.join(), room.join()
    room.step((first, arrays(0.0)))
    data = wire.encode(arrays(9.0))
    room.fleet.payloads.append(second.id, sha(data), 0, data)
    wish = Commit(sha256=sha(data), trained_from=0, tokens=1, expected_round=1)
    size = room.fleet.check_upload(second, wish, room.fleet.table(wish.trained_from))
    room.commit(first, arrays(1.0))
    room.now += 1800
    room.fleet.close_if_complete()
    refused("stale_round", room.fleet.record, second, wish, size)


def test_a_crash_before_the_generalist_is_made_gives_the_same_bits(tmp_path):
    found = []
    for name, crashes in (("one", False), ("other", True)):
        room = Room(tmp_path / name)
        devices = [room.join() for _ in range(3)]
        room.step((devices[0], arrays(0.25)))
        for seed, device in enumerate(devices):
            rng = np.random.default_rng(seed)
            room.commit(device, {n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()})
            if crashes:
                room.crash()
        room.publish()
        found.append(wire.encode(room.newest()))
    assert found[0] == found[1]


@pytest.mark.parametrize("averaging", ["freeze-a", "alternate"])
def test_exact_averaging_takes_one_side_at_a_time_and_leaves_the_other(tmp_path, averaging):
    room = Room(tmp_path / averaging, averaging=averaging)
    device = room.join()
    room.step((device, arrays(1.0)))
    inner, outer = SHAPES
    expected = {"freeze-a": [outer, outer], "alternate": [outer, inner]}[averaging]
    value = dict.fromkeys(SHAPES, 1.0)
    for name in expected:
        refused("incomplete", room.commit, device, arrays(1.5))
        room.step((device, arrays(0.5, [name])))
        value[name] += 0.5
        for key, array in room.newest().items():
            np.testing.assert_array_equal(array, np.full(SHAPES[key], value[key], np.float32))


def test_nothing_is_trained_before_somebody_joined(room):
    assert room.fleet.upload_limit() == 0
    with pytest.raises(Refused, match="trains nothing yet"):
        room.fleet.table(-1)


def test_the_state_says_what_a_device_has_to_know(room):
    first, second = room.join(), room.join()
    state = room.fleet.state(first)
    assert (state.open_round, state.newest, state.has_contributed) == (0, None, False)
    room.step((first, arrays(1.0)))
    room.commit(first, arrays(1.0))
    state = room.fleet.state(first)
    assert (state.open_round, state.has_contributed) == (1, True)
    assert keys.open_manifest(state.newest, room.chain.signing_key).round == 0
    assert not room.fleet.state(second).has_contributed


def test_an_update_id_counts_once_whatever_comes_with_it(room):
    first, second = room.join(), room.join()
    room.step((first, arrays(0.0)))
    receipt = room.commit(first, arrays(1.0), update_id="0a")
    room.step((second, arrays(1.25)), update_id="0a")  # another device's ids are its own
    assert room.value() == 1.125
    before = room.ledger()
    assert room.commit(first, arrays(1.0), update_id="0a") == receipt
    assert room.commit(first, arrays(9.0), update_id="0a") == receipt
    assert room.commit(first, arrays(1.0), trained_from=0) == receipt  # as a device without ids sends it
    assert room.ledger() == before


def test_equal_updates_with_other_ids_count_each_in_its_round(tmp_path):
    room = Room(tmp_path / "room", goal=1)
    device = room.join()
    room.step((device, arrays(0.0)))
    receipts = [room.commit(device, arrays(1.0), trained_from=0, update_id=name) for name in ("01", "02")]
    assert [receipt.round for receipt in receipts] == [1, 2]
    assert room.commit(device, arrays(1.0), trained_from=0, update_id="01") == receipts[0]


def test_an_update_that_counted_without_an_id_counts_once_with_one_too(room):
    first, _ = room.join(), room.join()
    room.step((first, arrays(0.0)))
    receipt = room.commit(first, arrays(1.0))
    assert room.commit(first, arrays(1.0), update_id="01") == receipt
    refused("already_counted", room.commit, first, arrays(2.0), update_id="01")


def test_the_state_names_the_last_eight_updates_of_the_device(tmp_path):
    room = Room(tmp_path / "room", goal=1)
    device, other = room.join(), room.join(name="other")
    assert room.fleet.state(device).counted == []
    for number in range(10):
        room.step((device, arrays(0.0)), update_id=f"{number:x}")
    assert room.fleet.state(device).counted == list("23456789")
    assert room.fleet.state(other).counted == []


def test_what_a_revocation_takes_away_is_not_among_the_counted(room):
    device, _ = room.join(name="first"), room.join()
    room.step((device, arrays(0.0)), update_id="0a")
    room.step((device, arrays(0.0)), update_id="0b")
    assert room.fleet.state(device).counted == ["0a", "0b"]
    room.fleet.revoke("first")
    assert room.fleet.state(device).counted == ["0a"]


def test_losses_of_a_refusal_are_numbers(room):
    device = room.join()
    for loss in (math.nan, math.inf):
        refused("bad_refusal", room.fleet.refuse, device, Refusal(round=0, loss_before=1.0, loss_after=loss))


def test_an_unknown_name_cannot_be_revoked(room):
    with pytest.raises(CoordinatorError, match="no device nobody"):
        room.fleet.revoke("nobody")


def test_weights_are_those_of_the_receipts(room):
    device = room.join()
    assert room.commit(device, arrays(1.0)).weight == 1.0
    assert room.fleet.database.value("SELECT weight FROM updates") == ONE


def test_who_brought_nothing_for_twenty_rounds_is_not_waited_for_until_it_brings_something(tmp_path):
    room = Room(tmp_path / "room", deadline_seconds=1800.0)
    good, late = room.join(name="good"), room.join(name="late")
    room.step((good, arrays(0.0)))
    for number in range(1, 20):  # round 0 is the first of the twenty
        room.step((good, arrays(0.1)))
        assert room.fleet.open_round == number  # it waits
        room.now += 1800
        room.step()
        assert room.fleet.open_round == number + 1
    assert room.fleet.awaited == 1
    room.step((good, arrays(0.1)))
    assert room.fleet.open_round == 21
    room.step((late, arrays(0.1)))
    assert room.fleet.open_round == 21
    assert room.fleet.awaited == 2
    room.step((good, arrays(0.1)))
    assert room.fleet.open_round == 22
    room.join(name="new")
    assert room.fleet.awaited == 3
    room.fleet.database.close()


def test_a_round_that_too_few_bring_to_says_so_past_its_deadline(tmp_path):
    room = Room(tmp_path / "room", deadline_seconds=1800.0)
    good, *_ = [room.join() for _ in range(3)]
    room.step((good, arrays(0.0)))
    room.step((good, arrays(0.1)))
    assert overview(room.fleet, 0.0, "1")["notes"] == [room.config.gone()] * (not room.fleet.has_settings_file)
    room.now += 1801
    assert "round 1 waits past its deadline: 1 of 2 devices have sent" in overview(room.fleet, 0.0, "1")["notes"][0]
    room.fleet.database.close()
