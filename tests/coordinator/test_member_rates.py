"""One member's uploads are bounded: whatever it sends, it cannot take the coordinator from the others."""

import pytest

from comigs_edge.fleet.client import Offline
from tests.coordinator.rig import Member, random_arrays


def test_a_member_that_sends_pieces_without_end_is_told_to_wait_and_the_others_are_served(coordinator):
    greedy, other = Member(coordinator.invite()), Member(coordinator.invite())
    headers = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    sent = []

    def send_without_end():
        for number in range(5000):
            greedy.remote._once("PATCH", f"/v1/uploads/{number:064x}", b"x", headers)
            sent.append(number)

    with pytest.raises(Offline, match="too many requests") as error:
        send_without_end()
    assert error.value.retry_after >= 1
    assert 200 <= len(sent) < 5000
    other.push(random_arrays(1))
    assert other.remote.state().open_round == 1
