"""A real coordinator on a real port, real devices: joining, a round, the mean that everybody gets."""

import numpy as np
import pytest

from comigs_edge.fleet.client import RemoteRefused
from coordinator.protocol import keys
from tests.coordinator.rig import Member, arrays, random_arrays


def test_two_devices_get_the_mean_of_their_changes(coordinator, tmp_path):
    first, second = (Member(coordinator.invite(name)) for name in ("kitchen-pi", "attic-pi"))
    first.push(random_arrays(0))
    number, start = first.pull(tmp_path)
    assert number == 0
    np.testing.assert_allclose(
        start["generalist.blk.0.ffn_gate.lora_a"], random_arrays(0)["generalist.blk.0.ffn_gate.lora_a"], atol=2e-9
    )
    first.push(arrays(2.0))
    second.push(arrays(3.0))
    for member in (first, second):
        number, found = member.pull(tmp_path, at_least=1)
        assert number == 1
        for name, array in found.items():
            np.testing.assert_allclose(array, start[name] + 2.5, rtol=1e-6)  # (2 + 3) / 2


def test_an_invitation_is_good_for_one_device(coordinator):
    link = coordinator.invite()
    assert Member(link).joined.name == "device-1"
    with pytest.raises(RemoteRefused, match="used already"):
        Member(link)


def test_a_device_that_joins_again_without_a_name_keeps_its_own(coordinator):
    member = Member(coordinator.invite("kitchen-pi"))
    member.wish.code = keys.read_link(coordinator.invite())[1]
    assert member.remote.join(member.wish).name == "kitchen-pi"


def test_a_revoked_device_is_refused_at_its_next_request(coordinator):
    member = Member(coordinator.invite("lost-pi"))
    member.remote.state()
    coordinator.command("revoke", "lost-pi")
    with pytest.raises(RemoteRefused, match="lost-pi was removed"):
        member.remote.state()
