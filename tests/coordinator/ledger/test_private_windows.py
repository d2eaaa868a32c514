"""The file of private windows."""

from contextlib import closing

from coordinator.ledger.private import PrivateRounds
from coordinator.ledger.windows import Windows
from coordinator.protocol import keys
from coordinator.protocol.private.messages import SignedKeys
from tests.coordinator.ledger.test_fleet import Room, arrays


def test_a_stage_that_began_in_the_future_begins_when_the_coordinator_starts(tmp_path):
    path, key = tmp_path / "windows.db", keys.new_key()
    with closing(Windows(path, key, "fleet", lambda: 5000.0)) as ahead:
        ahead.begin(3, 1.0, 8)
        (window,) = ahead.open
        ahead.put(window, "device", SignedKeys(keys="ab", signature="cd"))
    with closing(Windows(path, key, "fleet", lambda: 1000.0)) as windows:
        assert windows.open[window].since == 1000.0


def test_a_device_hears_the_lowest_bound_of_the_windows_also_where_there_is_none(tmp_path):
    room = Room(tmp_path / "data", private=True, norm_bound=2.0)
    device = room.join()
    room.step((device, arrays(1.0)))
    with closing(room.fleet.database), closing(PrivateRounds(room.fleet, tmp_path)) as private:
        assert private.windows.open == {}
        assert private.state(device).norm_limit == 2.0
        for bound, limit in ((1.0, 1.0), (3.0, 1.0)):
            private.windows.begin(3, bound, 8)
            assert private.state(device).norm_limit == limit
            for window in private.windows.open.values():
                window.stage = "masked"  # the next one is begun beside it
        private.windows.open.clear()
        private.windows.begin(3, 3.0, 8)
        assert private.state(device).norm_limit == 2.0
