"""Private windows on the status page, in the metrics and in `status`: counts, and how the last ones ended."""

import ssl
import urllib.request
from contextlib import closing

from prometheus_client.parser import text_string_to_metric_families

from coordinator.ledger.config import Config
from coordinator.ledger.database import Database
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.payloads import Payloads
from coordinator.ledger.private import PrivateRounds
from coordinator.protocol import keys
from coordinator.web import page
from tests.coordinator.ledger.test_private_windows import begin_window
from tests.coordinator.web.test_page import Clock, Read, close, join, update
from tests.fleet.test_private import fleet_of, learn, publish, run_to, touch


def drawn(tmp_path):
    """The page of a private fleet with a window on its way, one that was summed and two that were given up, as HTML."""
    clock = Clock()
    config = Config().with_values({"private": True})
    with closing(Database(tmp_path / "coordinator.db")) as database:
        fleet = Fleet(database, Payloads(tmp_path), keys.new_key(), config, clock)
        members = [join(fleet, name) for name in ("kitchen-pi", "attic-jetson", "garage", "guest-room-orange-pi-5-plus")]
        for number in range(6):
            for member in members[: 3 + number % 2]:
                update(fleet, member, number, None)
            clock.now += 3600
            close(fleet, number)
        with closing(PrivateRounds(fleet, tmp_path)) as private:
            for outcome in ({"round": 5}, None, {"round": 6}, None):
                devices = begin_window(private.windows, 4)
                if outcome is None:
                    clock.now += config.rounds.deadline_seconds + 1
                    private.windows.advance(config.rounds, 4, "", devices)
                else:
                    private.windows.end(next(iter(private.windows.open)), **outcome)
                clock.now += 1800
            begin_window(private.windows, 5)
            clock.now += 60
            return page.render(fleet, clock.now - 86400, "1.0", private)


def get(coordinator, path):
    with urllib.request.urlopen(coordinator.address + path, context=ssl._create_unverified_context()) as answer:
        return answer.read().decode()


def words(coordinator):
    return " ".join(" ".join(Read(get(coordinator, "/")).words).split())


def metrics(coordinator):
    families = text_string_to_metric_families(get(coordinator, "/metrics"))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families for sample in family.samples if "private" in sample.name
    }  # fmt: skip


def test_page_and_metrics_say_how_many_have_given_what_the_window_asks_for(private, tmp_path):
    devices = fleet_of(private, tmp_path, 4)
    assert "a private fleet: updates are opened in sums only" in words(private)
    learn(devices)
    run_to(private, list(reversed(devices)), "masked")
    touch([device for device in devices if not device.folder.was_tried][:1])
    window = private.ask("status")["private"][0]
    assert (window["stage"], window["devices"], window["needed"]) == ("masked", 4, 3)
    shown = words(private)
    assert f"Round 1, private window {window['given']} of 4 devices masked updates come; deadline in" in shown
    assert f"on its way now masked updates come 4 {window['given']} 3 are needed" in shown
    found = metrics(private)
    assert found["comigs_private_window_devices", "masked"] == 4
    assert found["comigs_private_window_answers", "masked"] == window["given"]
    assert found["comigs_private_windows_ended_total", "summed"] == 0
    names = {device.books.membership.device for device in devices}
    assert not any(name in get(private, "/") + get(private, "/metrics") for name in names)


def test_a_window_that_was_summed_names_the_round_that_it_closed(private, tmp_path):
    devices = fleet_of(private, tmp_path, 3)
    learn(devices)
    publish(private, devices, 1)
    [ended, *_] = private.ask("status")["ended"]
    assert (ended["round"], ended["devices"], ended["given"], ended["reason"]) == (1, 3, 3, None)
    assert "summed just now the sum is opened 3 3 round 1" in words(private)
    assert metrics(private)["comigs_private_windows_ended_total", "summed"] == 1
    private.stop()
    private.restart()
    assert private.ask("status")["ended"] == [ended]


def test_a_window_that_was_given_up_says_why(tmp_path):
    shown = " ".join(" ".join(Read(drawn(tmp_path)).words).split())
    reason = "given up 31 minutes ago shares are exchanged 4 0 0 of 4 devices gave their shares in time, 3 are needed"
    assert reason in shown
    assert "Round 6, private window 0 of 5 devices shares are exchanged; deadline in" in shown


def test_a_fleet_that_is_not_private_shows_no_window(coordinator):
    assert "rivate window" not in get(coordinator, "/")
    assert metrics(coordinator) == {}
