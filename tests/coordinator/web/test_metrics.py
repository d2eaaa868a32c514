"""The metrics, read by Prometheus' own parser."""

import json
import ssl
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.ledger.config import Config
from coordinator.ledger.database import Database
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.payloads import Payloads
from coordinator.protocol.keys import new_key
from coordinator.web.metrics import Metrics
from tests.coordinator.rig import Coordinator, Member, random_arrays


@pytest.fixture
def fleet(tmp_path):
    database = Database(tmp_path / "coordinator.db")
    yield Fleet(database, Payloads(tmp_path), new_key(), Config(), lambda: 1000.0)
    database.close()


def read(text):
    """(name, labels) -> value, as Prometheus understands it."""
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation and family.type != "unknown" for family in families)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_a_histogram_is_cumulative_and_its_sum_is_the_seconds(fleet):
    metrics = Metrics()
    for seconds in (0.001, 0.005, 0.2, 60.0):
        metrics.count("GET", "/v1/state", 200, seconds)
    found = read(metrics.render(fleet, 990.0, "1"))
    labels = (("method", "GET"), ("route", "/v1/state"))
    buckets = {bound: found["comigs_http_request_duration_seconds_bucket", (("le", bound), *labels)] for bound in
               ("0.005", "0.025", "0.1", "0.5", "2.5", "10", "+Inf")}  # fmt: skip
    assert buckets == {"0.005": 2, "0.025": 2, "0.1": 2, "0.5": 3, "2.5": 3, "10": 3, "+Inf": 4}
    assert found["comigs_http_request_duration_seconds_sum", labels] == pytest.approx(60.206)
    assert found["comigs_http_request_duration_seconds_count", labels] == 4
    assert found["comigs_http_requests_total", (*labels, ("status", "200"))] == 4
    assert found["comigs_uptime_seconds", ()] == 10


def test_labels_survive_every_character(fleet):
    metrics, route = Metrics(), 'a "quoted" \\ back\nline'
    metrics.count("GET", route, 200, 0.1)
    found = read(metrics.render(fleet, 0.0, 'v"1\\'))
    assert found["comigs_http_requests_total", (("method", "GET"), ("route", route), ("status", "200"))] == 1
    assert found["comigs_info", (("fleet", fleet.id), ("version", 'v"1\\'))] == 1


def test_a_running_coordinator_counts_what_happened(tmp_path):
    coordinator = Coordinator(tmp_path / "data")
    try:
        member = Member(coordinator.invite("kitchen-pi"))
        member.push(random_arrays(0))
        status = coordinator.until(lambda status: status["newest_round"] == 0)
        context = ssl._create_unverified_context()
        with urllib.request.urlopen(coordinator.address + "/metrics", context=context) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            found = read(answer.read().decode())
        with urllib.request.urlopen(coordinator.address + "/openapi.json", context=context) as answer:
            routes = set(json.load(answer)["paths"])
    finally:
        coordinator.stop()
    gauges = {name: value for (name, labels), value in found.items() if not labels}
    assert (gauges["comigs_devices"], gauges["comigs_active_devices"], gauges["comigs_updates"]) == (1, 1, 1)
    assert (gauges["comigs_open_round"], gauges["comigs_newest_round"], gauges["comigs_refusals"]) == (1, 0, 0)
    assert gauges["comigs_received_bytes"] == status["bytes_in"]
    counted = {labels for name, labels in found if name == "comigs_http_requests_total"}
    assert {dict(labels)["route"] for labels in counted} <= routes
    assert (("method", "POST"), ("route", "/v1/updates"), ("status", "200")) in counted
