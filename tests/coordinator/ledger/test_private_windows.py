"""The file of private windows."""

from contextlib import closing

from coordinator.ledger import windows as windows_file
from coordinator.ledger.overview import overview
from coordinator.ledger.private import PrivateRounds
from coordinator.ledger.roster import NONE, use_roster
from coordinator.ledger.windows import Windows
from coordinator.protocol import keys
from coordinator.protocol.messages import encode
from coordinator.protocol.private import steps
from coordinator.protocol.private.messages import Roster, SignedKeys
from coordinator.protocol.private.roster import sign_roster
from coordinator.protocol.rounds import Rules
from coordinator.web import page
from coordinator.web.metrics import Metrics
from tests.coordinator.ledger.test_fleet import Room, arrays


def begin_window(windows, count):
    """A window of so many devices that exchanges shares; their ids."""
    windows.begin(3, 1.0, 10)
    (name,), identities = windows.open, [keys.new_key() for _ in range(count)]
    devices = {keys.device_id(keys.public_text(key)): steps.make_keys(bytes(32), name, key) for key in identities}
    for device, made in devices.items():
        windows.put(name, device, made)
    windows.advance(Rules(private=True), count, "", devices)
    return set(devices)


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


def test_goal_and_status_count_the_devices_that_the_roster_has_and_name_the_others(tmp_path):
    room, owner = Room(tmp_path / "data", private=True, min_devices=3), keys.new_key()
    devices = [room.join() for _ in range(5)]
    room.step((devices[0], arrays(1.0)))
    assert (overview(room.fleet, 0.0, "1")["goal"], overview(room.fleet, 0.0, "1")["unlisted"]) == (5, 0)
    named = {keys.to_text(device.public_key.public_bytes_raw()): device.name for device in devices[:3]}
    use_roster(room.fleet, encode(sign_roster(owner, Roster(fleet=room.fleet.id, serial=1, devices=named))).decode())
    facts = overview(room.fleet, 0.0, "1")
    assert (facts["goal"], facts["devices"], facts["active"], facts["unlisted"]) == (3, 5, 5, 2)
    assert all(device.name in " ".join(facts["notes"]) for device in devices[3:])
    assert "comigs_unlisted_devices 2\n" in Metrics().render(room.fleet, 0.0, "1")
    assert "5 devices; 2 not in the owner's roster" in page.render(room.fleet, 0.0, "1").replace("&#x27;", "'")
    use_roster(room.fleet, NONE)
    assert (overview(room.fleet, 0.0, "1")["goal"], overview(room.fleet, 0.0, "1")["unlisted"]) == (5, 0)


def test_a_window_that_is_given_up_leaves_its_reason_and_its_counts_and_nothing_else(tmp_path):
    now, path = [1000.0], tmp_path / "windows.db"
    with closing(Windows(path, keys.new_key(), "fleet", lambda: now[0])) as windows:
        devices = begin_window(windows, 4)
        (name,) = windows.open
        assert windows.open[name].stage == "shares"
        now[0] += 61
        windows.advance(Rules(private=True, deadline_seconds=60), 4, "", devices)
        assert name not in windows.open
        [ended] = windows.ended()
        reason = "0 of 4 devices gave their shares in time, 3 are needed"
        assert ended == {"ended": 1061.0, "stage": "shares", "devices": 4, "given": 0, "round": None, "reason": reason}
        assert windows.outcomes == {"summed": 0, "given_up": 1}
        kept = windows.ended()
    data = path.read_bytes()
    assert not any(device.encode() in data for device in devices)
    with closing(Windows(path, keys.new_key(), "fleet", lambda: now[0])) as windows:
        assert windows.ended() == kept


def test_the_last_ends_are_kept_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(windows_file, "KEPT", 3)
    with closing(Windows(tmp_path / "windows.db", keys.new_key(), "fleet", lambda: 1000.0)) as windows:
        for number in range(8):
            windows.begin(3, 1.0, 10)
            windows.end(next(iter(windows.open)), round=number)
        assert [each["round"] for each in windows.ended()] == [7, 6, 5]
