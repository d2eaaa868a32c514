"""One member's uploads are bounded: whatever it sends, it cannot take the coordinator from the others."""

import pytest

from comigs_edge.fleet.client import Offline
from tests.coordinator.rig import Member, random_arrays


def test_a_member_that_sends_pieces_without_end_is_told_to_wait_and_the_others_are_served(coordinator):
    greedy, other = Member(coordinator.invite()), Member(coordinator.invite())
    headers = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    send = lambda number: greedy.remote._once("PATCH", f"/v1/uploads/{number:064x}", b"x", headers)  # noqa: E731
    for number in range(200):
        send(number)
    with pytest.raises(Offline, match="too many requests") as error:
        list(map(send, range(200, 5000)))
    assert error.value.retry_after >= 1
    other.push(random_arrays(1))
    assert other.remote.state().open_round == 1
