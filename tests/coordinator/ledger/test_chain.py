"""The published generalists: a chain that a device follows, and that turns back where devices refuse."""

import hashlib

import msgspec
import numpy as np
import pytest

from comigs_edge.fleet.chain import Check, ForkedChain, follow
from coordinator.protocol import keys, rounds
from coordinator.protocol.messages import Refusal
from tests.coordinator.ledger.test_fleet import SHAPES, Room, arrays, refused


@pytest.fixture
def room(tmp_path):
    found = Room(tmp_path / "room", goal=1)
    yield found
    found.fleet.database.close()


def opened(room):
    return [keys.open_manifest(signed, room.chain.signing_key) for signed in room.chain.manifests(-1)]


def refuse(room, device, number=None):
    number = room.chain.newest_number if number is None else number
    return room.fleet.refuse(device, Refusal(round=number, loss_before=1.0, loss_after=2.0))


def grown(room, *values):
    """A fleet of three whose generalists are full of these numbers."""
    devices = [room.join() for _ in range(3)]
    last = 0.0
    for value in values:
        room.step((devices[0], arrays(value - last)))
        last = value
    return devices


def test_each_manifest_names_the_bytes_before_it(room):
    grown(room, 1.0, 2.0, 4.0)
    signed, found = room.chain.manifests(-1), opened(room)
    assert [manifest.round for manifest in found] == [0, 1, 2]
    assert [manifest.previous for manifest in found] == ["", keys.chain_hash(signed[0]), keys.chain_hash(signed[1])]
    assert {manifest.base_sha256 for manifest in found} == {"ab" * 32}
    assert {manifest.fleet for manifest in found} == {room.fleet.id}
    assert room.chain.newest == signed[-1]
    assert room.chain.manifests(1) == signed[2:]


def test_a_change_is_the_mean_as_float16_and_the_generalist_the_one_before_plus_it(tmp_path):
    room = Room(tmp_path / "room", update_format="float16")
    devices, rng = [room.join() for _ in range(2)], np.random.default_rng(2)
    first, *sent = [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in range(3)]
    sent[1] = {name: array[::-1].copy() for name, array in sent[0].items()}  # of the same norm: both count whole
    room.step((devices[0], first))
    room.step(*zip(devices, sent, strict=True))
    begin, then = opened(room)
    assert (begin.change_sha256, begin.change_size) == (None, None)
    for path, dtype, size in (then.change_sha256, "<f2", then.change_size), (then.sha256, "<f4", then.size):
        data = room.fleet.payloads.path(path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, path)
        body = np.frombuffer(data, dtype, offset=8 + int.from_bytes(data[:8], "little"))
        names = sorted(SHAPES)
        a, b = (np.concatenate([update[name].ravel() for name in names]).astype(np.float16) for update in sent)
        change = ((a.astype(np.float64) + b.astype(np.float64)) / 2).astype(np.float16)
        whole = np.concatenate([first[name].ravel() for name in names])
        np.testing.assert_allclose(whole, np.rint(whole * 2.0**28) / 2.0**28, atol=2**-28)
        before = (np.rint(whole.astype(np.float64) * 2.0**28) / 2.0**28).astype(np.float32)
        np.testing.assert_array_equal(body, change if dtype == "<f2" else before + change.astype(np.float32))


def test_changes_are_kept_as_long_as_their_generalists(room):
    grown(room, *map(float, range(14)))
    kept = [room.fleet.payloads.path(manifest.change_sha256).exists() for manifest in opened(room)[1:]]
    assert kept[-10:] == [True] * 10


@pytest.mark.parametrize(("update_format", "averaging", "weights", "digest"), [
    ("float32", "separate", "uniform", "392077c5eebc2a52"),
    ("float16", "freeze-a", "tokens", "2cd92ce283355985"),
    ("int8", "alternate", "tokens", "194a5ee64c330c04"),
])  # fmt: skip
def test_three_rounds_give_the_bits_that_were_recorded(tmp_path, update_format, averaging, weights, digest):
    room = Room(tmp_path / "room", update_format=update_format, averaging=averaging, weights=weights)
    devices, rng = [room.join(name=f"d{index}") for index in range(3)], np.random.default_rng(1)

    def update(names):
        return {name: rng.standard_normal(SHAPES[name]).astype(np.float32) for name in names}

    room.step((devices[0], update(SHAPES)))
    for number in (1, 2, 3):
        for index, device in enumerate(devices):
            trained_from = 0 if (index, number) == (2, 3) and averaging != "alternate" else number - 1
            names = rounds.trained_names(SHAPES, averaging, trained_from + 1)
            room.commit(device, update(names), trained_from=trained_from, tokens=1000 * (index + 1) ** 5)
        room.publish()
    newest = b"".join(array.tobytes() for _, array in sorted(room.newest().items()))
    assert hashlib.sha256(newest).hexdigest()[:16] == digest
    room.fleet.database.close()


def test_the_chain_survives_a_restart(room):
    grown(room, 1.0, 2.0)
    before = room.chain.manifests(-1)
    room.crash()
    assert room.chain.manifests(-1) == before


def check(room):
    return Check(room.fleet.id, room.chain.signing_key, "ab" * 32)


def test_a_device_follows_the_chain_and_refuses_forks_rollback_and_other_keys(room, tmp_path):
    grown(room, 1.0, 2.0, 4.0)
    chain = room.chain.manifests(-1)
    manifest, head, *_ = follow(chain[2], -1, "", room.chain.manifests, check(room))
    assert (manifest.round, head) == (2, keys.chain_hash(chain[2]))

    def refused_link(reason, newest, links=()):
        with pytest.raises(ForkedChain, match=reason):
            follow(newest, 2, head, lambda after: list(links), check(room))

    altered = {
        change: keys.sign_manifest(key, msgspec.structs.replace(manifest, **fields))
        for change, key, fields in (
            ("key", keys.new_key(), {}),
            ("fleet", room.key, {"fleet": "another"}),
            ("content", room.key, {"sha256": "cd" * 32}),
            ("gap", room.key, {"round": 3, "previous": keys.chain_hash(chain[1])}),
        )
    }
    refused_link("as its newest and this device knows 2", chain[1])
    refused_link("not the coordinator's", altered["key"])
    refused_link("another fleet", altered["fleet"])
    refused_link("not the one that this device has", altered["content"], [altered["content"]])
    refused_link("does not continue", altered["gap"], [chain[2], altered["gap"]])
    refused_link("there are two", altered["content"], [chain[2]])
    later = keys.sign_manifest(room.key, msgspec.structs.replace(manifest, round=4))
    refused_link("it is missing", later, [chain[2]])
    assert follow(chain[2], 2, head, None, check(room))[0].round == 2  # what is known, or comes next, needs no question
    assert follow(chain[2], 1, keys.chain_hash(chain[1]), None, check(room))[1] == head


def test_a_third_of_refusals_publishes_the_generalist_before_again(tmp_path):
    room = Room(tmp_path / "room", goal=1)
    devices = grown(room, 1.0, 2.0, 50.0) + [room.join() for _ in range(3)]  # six devices: a third are two
    good = opened(room)[1]
    assert refuse(room, devices[0])["newest"] == 2
    assert refuse(room, devices[0]) == {"refusals": 1, "active": 6, "newest": 2}  # twice is once
    assert refuse(room, devices[1]) == {"refusals": 2, "active": 6, "newest": 3}
    newest = opened(room)[-1]
    assert (newest.round, newest.rolled_back_to, newest.sha256, newest.devices) == (3, 1, good.sha256, 0)
    assert newest.previous == keys.chain_hash(room.chain.manifests(-1)[2])
    assert (room.value(), room.fleet.open_round) == (2.0, 4)


def test_an_update_of_the_round_that_a_rollback_takes_moves_on_with_it(tmp_path):
    room = Room(tmp_path / "room", goal=3)
    devices = [room.join() for _ in range(3)]
    room.step((devices[0], arrays(1.0)))
    room.step(*((device, arrays(1.0)) for device in devices))
    receipt = room.commit(devices[2], arrays(1.25))
    assert receipt.round == 2
    for device in devices[:2]:
        refuse(room, device)
    assert (room.chain.newest_number, room.fleet.open_round, room.value()) == (2, 3, 1.0)
    assert room.commit(devices[2], arrays(1.25), trained_from=1).round == 3  # asked again: it counts once, there
    room.step(*((device, arrays(0.0)) for device in devices[:2]))
    assert room.value() == 1.0 + np.float16(1.25 / 3)
    assert room.fleet.database.value("SELECT count(*) FROM updates WHERE device = ?", devices[2].id) == 2


def test_nothing_is_turned_back_while_a_closed_round_waits_for_its_generalist(tmp_path):
    room = Room(tmp_path / "room", goal=1)
    devices = grown(room, 1.0, 2.0, 50.0)
    room.commit(devices[2], arrays(4.0))  # closes the round; its generalist is not made yet
    for device in devices[:2]:
        assert refuse(room, device, 2)["newest"] == 2
    room.publish()
    assert (room.chain.newest_number, room.value()) == (3, 54.0)
    assert [manifest.rolled_back_to for manifest in opened(room)] == [None] * 4


def test_a_refusal_whose_answer_was_lost_is_answered_again(room):
    devices = grown(room, 1.0, 2.0, 50.0)
    refuse(room, devices[0])
    answered = refuse(room, devices[1])
    assert answered["newest"] == 3
    before = room.ledger()
    assert refuse(room, devices[1], 2)["newest"] == 3
    assert room.ledger() == before


def test_a_second_rollback_goes_on_back_and_never_to_what_was_refused(room):
    devices = grown(room, 1.0, 2.0, 50.0)
    for _ in range(2):
        for device in devices[:2]:
            refuse(room, device)
    newest = opened(room)[-1]
    assert (newest.round, newest.rolled_back_to, room.value()) == (4, 0, 1.0)
    for device in devices[:2]:
        refuse(room, device)  # there is nothing before
    assert room.chain.newest_number == 4
    room.step((devices[0], arrays(0.5)))  # and the fleet goes on
    assert (room.chain.newest_number, room.value()) == (5, 1.5)


def test_refusals_that_come_too_late_or_too_early_change_nothing(room):
    devices = grown(room, 1.0, 2.0, 4.0)
    before = room.ledger()
    for number in (-1, 0, 1, 3, 10**6):
        refused("stale_round", refuse, room, devices[0], number)
    assert room.ledger() == before


def test_who_refuses_what_it_turned_back_to_as_well_is_not_counted_from_the_third_on(tmp_path):
    room = Room(tmp_path, goal=1)
    one, other = room.join(), room.join()
    for _ in range(9):
        room.step((one, arrays(1.0)))
    for _ in range(6):
        refuse(room, other)
    assert [opened(room)[number].rolled_back_to for number in range(9, len(opened(room)))] == [7, 6]
    assert room.chain.habitual() == {other.id}


def test_who_fills_the_fleets_history_with_nothing_of_its_own_is_not_believed_for_that(tmp_path):
    room = Room(tmp_path, goal=1)
    one, other = room.join(), room.join()
    room.step((one, arrays(0.0)))
    for _ in range(6):
        for _ in range(3):
            room.step((other, arrays(0.0)))
        room.step((one, arrays(1.0)))
        refuse(room, other)
    assert room.value() == 4
    assert room.chain.habitual() == {other.id}


def test_the_first_generalist_cannot_be_refused(room):
    devices = grown(room, 1.0)
    refused("stale_round", refuse, room, devices[0], 0)


def test_one_device_of_two_turns_the_fleet_back(tmp_path):
    room = Room(tmp_path / "room", goal=1)
    first, second = room.join(), room.join()
    for value in (1.0, 1.0):
        room.step((first, arrays(value)))
    assert refuse(room, second) == {"refusals": 1, "active": 2, "newest": 2}
    assert room.value() == 1.0


def play(room, honest, refusing, rounds_played, refuses=lambda number: True):
    """Rounds in which the honest bring 1.0 each and the others refuse; returns the rounds that were turned back."""
    room.step((honest[0], arrays(0.0)))
    for number in range(rounds_played):
        room.step(*((device, arrays(1.0)) for device in honest))
        for device in refusing:
            if refuses(number):
                refuse(room, device)
    return [row["number"] for row in room.fleet.database.rows("SELECT number FROM rounds WHERE rolled_back_to IS NOT NULL")]


@pytest.mark.parametrize(
    ("honest", "refusing", "refuses", "turned_back"),
    [
        (3, 1, lambda number: True, 0),  # one of four
        (2, 2, lambda number: True, 2),
        (4, 2, lambda number: True, 2),  # then they are not believed any more
        (6, 2, lambda number: True, 0),
        (4, 2, lambda number: number % 5 < 2, 8),  # as often as they are believed
        (1, 1, lambda number: True, 2),
        (1, 2, lambda number: True, 20),  # more than half: their fleet
    ],
)
def test_who_refuses_nearly_everything_freezes_nothing(tmp_path, honest, refusing, refuses, turned_back):
    room = Room(tmp_path / "room", goal=honest)
    devices = [room.join() for _ in range(honest + refusing)]
    assert len(play(room, devices[:honest], devices[honest:], 20, refuses)) == turned_back
    assert room.value() == 20 - turned_back


def test_a_refusal_of_one_that_was_removed_does_not_count(tmp_path):
    room = Room(tmp_path / "room", goal=1)
    devices = grown(room, 1.0, 2.0, 50.0) + [room.join() for _ in range(3)]
    refuse(room, devices[5])
    room.fleet.revoke(devices[5].name)
    assert refuse(room, devices[4]) == {"refusals": 1, "active": 5, "newest": 2}


def test_payloads_of_ten_generalists_are_kept_and_of_the_open_round(room):
    devices = grown(room, *range(15))
    payloads = {path.name for path in room.fleet.payloads.folder.iterdir()}
    wanted = {manifest.sha256 for manifest in opened(room)[-10:]}
    assert wanted <= payloads
    assert len(payloads) <= 11
    assert len(opened(room)) == 15
    room.config = room.config.with_values({"goal": 2})
    room.crash()
    room.commit(devices[0], arrays(1.0))
    room.crash()
    room.commit(devices[1], arrays(1.25))
    room.publish()
    assert room.value() == 15.125


def test_a_refusal_that_is_told_again_is_enough_when_fewer_devices_are_left(room):
    first, second, third = grown(room, 1.0, 2.0, 4.0)
    assert refuse(room, first)["refusals"] == 1  # of three devices two must refuse
    for device in (second, third):
        room.fleet.revoke(device.name)
    assert room.chain.newest_number == 2
    assert refuse(room, first, 2) == {"refusals": 1, "active": 1, "newest": 3}
    assert opened(room)[-1].sha256 == opened(room)[1].sha256
