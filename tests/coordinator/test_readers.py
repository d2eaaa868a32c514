"""What one member can learn of another's update from the generalists that the coordinator serves, over the network."""

import numpy as np
import pytest

from comigs_edge.fleet.client import RemoteRefused
from coordinator.protocol import wire
from tests.coordinator.rig import Coordinator, Member, random_arrays

READ = 2e-3  # largest error with which an update is known "exactly": what float16 rounds away of numbers up to 4


def served(member, number):
    return wire.decode(member.remote.call("GET", f"/v1/generalists/{number}").content, "the generalist")


def less(one, other):
    return {name: one[name] - other[name] for name in one}


def error(found, update):
    return max(float(np.abs(found[name] - update[name]).max()) for name in update)


def published(coordinator, number):
    coordinator.until(lambda status: status["newest_round"] == number)


@pytest.fixture
def started(tmp_path):
    """Starts coordinators with flags, and stops them."""
    found = []

    def start(**flags):
        found.append(Coordinator(tmp_path / str(len(found)), update_format="float32", deadline_seconds=1, **flags))
        return found[-1]

    yield start
    for coordinator in found:
        coordinator.stop()


def test_one_that_joins_later_reads_the_newest_generalist_and_what_comes_then(started):
    coordinator = started()
    victim = Member(coordinator.invite("victim"))
    for number in range(3):
        victim.push(random_arrays(number))
        published(coordinator, number)
    late = Member(coordinator.invite("late"))
    for number in (0, 1):
        with pytest.raises(RemoteRefused, match=f"generalist {number} is not here"):
            served(late, number)
    np.testing.assert_equal(served(late, 2), served(victim, 2))
    late.push(random_arrays(8))
    victim.push(random_arrays(9))
    published(coordinator, 3)
    assert served(late, 2).keys() == served(late, 3).keys()  # of its own time: still here
    assert error(less(served(victim, 1), served(victim, 0)), random_arrays(1)) < READ  # its own


def test_of_two_devices_each_reads_the_other_exactly_unless_three_are_asked_for(started):
    for min_devices in (1, 3):
        coordinator = started(min_devices=min_devices)
        victim, reader = Member(coordinator.invite("victim")), Member(coordinator.invite("reader"))
        victim.push(random_arrays(0))
        published(coordinator, 0)
        victim.push(random_arrays(1))
        reader.push(random_arrays(2))
        if min_devices == 1:
            published(coordinator, 1)
            twice = less(served(reader, 1), served(reader, 0))
            assert error(less({name: 2 * array for name, array in twice.items()}, random_arrays(2)), random_arrays(1)) < READ
        else:
            with pytest.raises(AssertionError):
                coordinator.until(lambda status: status["newest_round"] == 1, 3)  # three times the deadline
            third = Member(coordinator.invite("third"))
            third.push(random_arrays(3))
            published(coordinator, 1)


def test_a_device_alone_at_the_deadline_is_read_by_all_unless_more_are_asked_for(started):
    for min_devices in (1, 2):
        coordinator = started(min_devices=min_devices, min_fraction=0.25)
        victim, reader, *_ = (Member(coordinator.invite(f"d{index}")) for index in range(4))
        victim.push(random_arrays(0))
        published(coordinator, 0)
        victim.push(random_arrays(1))
        if min_devices == 1:
            published(coordinator, 1)
            assert error(less(served(reader, 1), served(reader, 0)), random_arrays(1)) < READ
        else:
            with pytest.raises(AssertionError):
                coordinator.until(lambda status: status["newest_round"] == 1, 3)
