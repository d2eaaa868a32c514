"""Prometheus' text format (version 0.0.4): requests of this process, and the fleet's sums.

What comes from the ledger is a gauge even where it mostly grows: a revoked device's update goes, and a crash takes back ten
minutes of counted bytes, which Prometheus would take for a counter that began anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import accumulate

from coordinator.ledger import overview
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.private import PrivateRounds

BUCKETS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0)  # seconds
ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
Labels = dict[str, str]
Samples = Iterable[tuple[str, Labels, float]]  # what follows the family's name, labels, value


class Metrics:
    """Counts requests; `render` adds the fleet."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._buckets: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * (len(BUCKETS) + 1))
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts an answered request. Callers give unknown methods and routes one word: each value takes memory."""
        self._answers[method, route, status] += 1
        self._buckets[method, route][sum(seconds > bound for bound in BUCKETS)] += 1
        self._seconds[method, route] += seconds

    def render(self, fleet: Fleet, started: float, version: str, private: PrivateRounds | None = None) -> str:
        """The text."""
        requests = _family(
            "comigs_http_requests_total", "counter", "Requests that were answered.",
            (("", {"method": method, "route": route, "status": str(status)}, count)
             for (method, route, status), count in sorted(self._answers.items())),
        )  # fmt: skip
        seconds = _family("comigs_http_request_duration_seconds", "histogram", "Time to make an answer.", self._durations())
        return requests + seconds + _fleet(fleet, started, version) + ("" if private is None else _windows(fleet, private))

    def _durations(self) -> Samples:
        for (method, route), counts in sorted(self._buckets.items()):
            labels = {"method": method, "route": route}
            bounds = [f"{bound:g}" for bound in BUCKETS] + ["+Inf"]
            for bound, count in zip(bounds, accumulate(counts), strict=True):
                yield "_bucket", {**labels, "le": bound}, count
            yield "_sum", labels, self._seconds[method, route]
            yield "_count", labels, sum(counts)


def _fleet(fleet: Fleet, started: float, version: str) -> str:
    facts, value = overview.overview(fleet, started, version), fleet.database.value
    gauges = (
        ("comigs_devices", "Devices of the fleet that are not revoked.", facts["devices"]),
        ("comigs_active_devices", "Devices that were heard of lately.", facts["active"]),
        ("comigs_unlisted_devices", "Devices that are not in the owner's roster, so that no private window takes their updates.",
         facts["unlisted"]),
        ("comigs_open_round", "Number of the open round.", facts["open_round"]),
        ("comigs_open_round_updates", "Updates in the open round.", facts["updates"]),
        ("comigs_open_round_goal", "Updates that close the open round.", facts["goal"]),
        ("comigs_newest_round", "Number of the newest generalist; -1 before the first.", facts["newest_round"]),
        ("comigs_updates", "Updates counted in all rounds.", value("SELECT count(*) FROM updates")),
        ("comigs_refusals", "Generalists that devices refused.", value("SELECT count(*) FROM refusals")),
        ("comigs_rollbacks", "Rounds that published an older generalist again.",
         value("SELECT count(rolled_back_to) FROM rounds")),
        ("comigs_alarms", "Devices that the owner should look at.", len(facts["alarms"])),
        ("comigs_received_bytes", "Bytes of bodies received from devices.", facts["bytes_in"]),
        ("comigs_sent_bytes", "Bytes of generalists sent to devices.", facts["bytes_out"]),
        ("comigs_disk_free_bytes", "Bytes free where the coordinator keeps its files.", facts["disk_free"]),
        ("comigs_uptime_seconds", "Seconds since the coordinator was started.", facts["now"] - started),
    )  # fmt: skip
    about = _family("comigs_info", "gauge", "What runs.", [("", {"version": version, "fleet": facts["fleet"]}, 1)])
    return about + "".join(_family(name, "gauge", text, [("", {}, number)]) for name, text, number in gauges)


def _windows(fleet: Fleet, private: PrivateRounds) -> str:
    """Of a private fleet: counts, and no device's name."""
    shown = overview.windows(fleet, private)["private"]
    return "".join((
        _family("comigs_private_windows", "gauge", "Private windows on their way.", [("", {}, len(shown))]),
        _family("comigs_private_window_devices", "gauge", "Devices of each private window on its way, by its stage.",
                [("", {"stage": each["stage"]}, each["devices"]) for each in shown]),
        _family("comigs_private_window_answers", "gauge", "Devices that have given what the stage of the window asks for.",
                [("", {"stage": each["stage"]}, each["given"]) for each in shown]),
        _family("comigs_private_windows_ended_total", "counter", "Private windows that ended since the start.",
                [("", {"outcome": name}, count) for name, count in sorted(private.windows.outcomes.items())]),
    ))  # fmt: skip


def _family(name: str, kind: str, text: str, samples: Samples) -> str:
    head = f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    return head + "".join(f"{name}{suffix}{_labels(labels)} {value}\n" for suffix, labels, value in samples)


def _labels(labels: Labels) -> str:
    inside = ",".join(f'{name}="{value.translate(ESCAPED)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""
