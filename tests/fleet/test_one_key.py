"""A home that was copied: two with one key, on a real coordinator."""

import shutil

import pytest

from comigs_edge.fleet import joining
from comigs_edge.home.folder import Home
from tests.coordinator.rig import Coordinator, generalist
from tests.fleet.rig import BASE, Device
from tests.fleet.test_exchange import begin, make, settled
from tests.fleet.test_ordinary_life import learn_away, newest, reopened


@pytest.fixture
def coordinator(tmp_path):
    """Each update closes a round."""
    running = Coordinator(tmp_path / "data", update_format="float32", goal=1)
    yield running
    running.stop()


def test_two_homes_with_one_key_hear_so_at_their_next_exchange_and_lose_nothing(coordinator, tmp_path):
    (device,) = make(coordinator, tmp_path, 1)
    begin(coordinator, [device])
    learn_away(device, 1.0)
    shutil.copytree(tmp_path / "home-0", tmp_path / "copy")
    copy = Device(tmp_path / "copy")
    copy.local = device.local

    def work(home):
        reopened(home)
        home.learn(1.0)
        for _ in range(2):
            assert home.exchange(tokens=10).offline is None
            settled(coordinator)
        home.exchange(tokens=0)
        said, home.folder.notes = home.folder.notes, []
        return said

    assert work(device) == []
    for home in (copy, device):
        (said,) = work(home)
        assert "came under this device's key and not from this home" in said
        assert "delete device.key there and join it with an invitation" in said
    copy.folder.key_file.unlink()
    joining.join(Home(tmp_path / "copy"), coordinator.invite(), None, generalist(base=BASE))
    work(copy)
    assert work(device) == []
    for home in (copy, device, copy, device):
        home.exchange(tokens=0)
        settled(coordinator)
    assert (device.value, copy.value, newest(coordinator)) == (pytest.approx(6, abs=0.01),) * 3
