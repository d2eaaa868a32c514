"""The file of private windows."""

from contextlib import closing

from coordinator.ledger.windows import Windows
from coordinator.protocol import keys
from coordinator.protocol.private.messages import SignedKeys


def test_a_stage_that_began_in_the_future_begins_when_the_coordinator_starts(tmp_path):
    path, key = tmp_path / "windows.db", keys.new_key()
    with closing(Windows(path, key, "fleet", lambda: 5000.0)) as ahead:
        ahead.begin(3, 1.0, 8)
        (window,) = ahead.open
        ahead.put(window, "device", SignedKeys(keys="ab", signature="cd"))
    with closing(Windows(path, key, "fleet", lambda: 1000.0)) as windows:
        assert windows.open[window].since == 1000.0
