"""A device that does not fit its fleet is named to the owner: in the log, by the commands, on the page, in the metrics."""

import ssl
import urllib.request

import numpy as np
import pytest

from comigs_edge.fleet.client import RemoteRefused
from coordinator.protocol.messages import Refusal
from tests import warm
from tests.coordinator.rig import Coordinator, Member, random_arrays


def printed(coordinator, command):
    words = ["-m", "coordinator", command, "--data", coordinator.data]
    return warm.run(words, check=True, capture_output=True, text=True).stdout


def page(coordinator, path):
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    return urllib.request.urlopen(f"{coordinator.address}{path}", context=anyone).read().decode()


def test_a_far_update_and_a_habitual_refuser_are_named_wherever_the_owner_looks(tmp_path):
    coordinator = Coordinator(tmp_path / "data")
    honest = [Member(coordinator.invite(f"honest-{index}")) for index in range(4)]
    odd, refuser = Member(coordinator.invite("odd")), Member(coordinator.invite("refuser"))
    honest[0].push(random_arrays(0))
    for number in range(1, 4):
        coordinator.until(lambda status, number=number: status["newest_round"] == number - 1)
        assert coordinator.ask("status")["alarms"] == {}
        for index, member in enumerate([*honest, refuser]):
            member.push(random_arrays(100 * number + index))
        odd.push(
            {name: -4 * array for name, array in random_arrays(7).items()} if number == 3 else random_arrays(100 * number + 9)
        )
        coordinator.until(lambda status, number=number: status["newest_round"] == number)
        refuser.remote.refuse(Refusal(round=number))
    alarms = coordinator.ask("status")["alarms"]
    assert alarms.keys() == {"odd", "refuser"}
    assert "its update of round 3 is" in alarms["odd"]
    assert "refused 3 or more of the last 5" in alarms["refuser"]
    for reason in alarms.values():
        assert all(reason in text for text in (printed(coordinator, "status"), printed(coordinator, "devices")))
        assert reason in page(coordinator, "/")
    assert "comigs_alarms 2\n" in page(coordinator, "/metrics")
    coordinator.stop()
    log = (tmp_path / "data.log").read_text()
    assert f"odd: {alarms['odd']}" in log
    assert "refuser keeps its generalist and not 3; it refuses most of them and is not counted" in log


def test_who_brings_nothing_or_nothing_that_counts_is_named_and_not_waited_for(tmp_path):
    coordinator = Coordinator(tmp_path / "data", deadline_seconds=0, max_staleness=5)  # rounds close with half of the devices
    good, other = Member(coordinator.invite("good")), Member(coordinator.invite("other"))
    silent, garbage = Member(coordinator.invite("silent")), Member(coordinator.invite("garbage"))
    good.push(random_arrays(0))
    for number in range(1, 5):
        status = coordinator.until(lambda status, number=number: status["newest_round"] == number - 1)
        assert status["goal"] == 4
        with pytest.raises(RemoteRefused, match="beyond 64"):
            garbage.push({name: 100 * np.ones_like(array) for name, array in random_arrays(1).items()})
        silent.remote.state()
        reason = coordinator.ask("status")["alarms"]["garbage"]
        assert reason.startswith("its updates are refused: ")
        assert "beyond 64" in reason
        for index, member in enumerate((good, other)):
            member.push(random_arrays(10 * number + index))
    status = coordinator.until(lambda status: status["newest_round"] == 4)
    silent.remote.state()
    assert status["goal"] == 2
    alarm = coordinator.ask("status")["alarms"]["silent"]
    assert alarm == "it is in touch and has brought nothing since it joined"
    assert all(
        alarm in text for text in (printed(coordinator, "status"), printed(coordinator, "devices"), page(coordinator, "/"))
    )
    silent.push(random_arrays(70))
    garbage.push(random_arrays(71))
    assert coordinator.ask("status")["alarms"].keys().isdisjoint({"silent", "garbage"})
    coordinator.stop()


def test_the_state_names_the_norm_up_to_which_an_update_counts(tmp_path):
    coordinator = Coordinator(tmp_path / "data", update_format="float32")
    member = Member(coordinator.invite())
    assert member.remote.state().norm_limit is None
    for number in range(3):
        assert member.remote.state().norm_limit is None or number == 2
        member.push(random_arrays(5))
        coordinator.until(lambda status, number=number: status["newest_round"] == number)
    norm = np.linalg.norm(np.concatenate([array.reshape(-1) for array in random_arrays(5).values()]))
    assert abs(member.remote.state().norm_limit - 1.5 * norm) < 1e-3 * norm
    coordinator.stop()
