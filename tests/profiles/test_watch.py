"""When a device is to be left alone: at the limits exactly, and read from files of devices that are not here."""

import os
from dataclasses import replace

import pytest

from profiles import watch
from profiles.watch import Limits, OtherLoad, Readings, limits, readings, reasons

LIMITS = Limits(80.0, 70.0, 30, 40, 100_000_000, 200_000_000, 0.5, 0.25)
LAPTOP = Readings(temperature=60.0, on_battery=True, battery=80, memory_left=2_000_000_000, other_load=0.5, cores=4)
KINDS = ("temperature", "battery", "memory", "load")
# Two cores, ten seconds apart. Of 2,000 ticks cpu0 worked 600 + 50 + 100 + 5 + 5 = 760 and cpu1 300 + 40 = 340, which is
# 1,100; idle, iowait (20) and steal (70 + 100) are no work, and the guests' 90 are in user. This process had 400 + 60, its
# children 30 + 10. The others: 1,100 - 500 = 600 of 2,000 ticks, so 0.6 of two cores.
BEFORE = {
    "proc/stat": "cpu  3000 100 900 16000 70 10 20 30 40 0\ncpu0 1000 100 500 8000 50 10 20 30 40 0\n"
    "cpu1 2000 0 400 8000 20 0 0 0 0 0\nintr 9 0 0\nctxt 7\n",
    "proc/self/stat": "41 (a ) b) R 1 41 41 0 -1 4194304 900 0 0 0 100 20 5 5 20 0 3 0 700 9 9\n",
}
AFTER = {
    "proc/stat": "cpu  3900 150 1040 16710 90 15 25 200 130 0\ncpu0 1600 150 600 8150 70 15 25 100 130 0\n"
    "cpu1 2300 0 440 8560 20 0 0 100 0 0\nintr 12 0 0\nctxt 8\n",
    "proc/self/stat": "41 (a ) b) R 1 41 41 0 -1 4194304 900 0 0 0 500 80 35 15 20 0 3 0 700 9 9\n",
}


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def kinds(now, paused_for=()):
    return [reason.kind for reason in reasons(now, LIMITS, paused_for)]


def test_a_cool_laptop_with_half_its_battery_goes_on():
    assert kinds(LAPTOP) == []
    assert kinds(Readings()) == []  # a device of which nothing is known


@pytest.mark.parametrize(
    ("kind", "change", "last_good", "first_bad", "last_paused", "resumed"),
    [
        ("temperature", "temperature", 80.0, 80.1, 70.0, 69.9),
        ("battery", "battery", 30, 29, 39, 40),
        ("memory", "memory_left", 100_000_000, 99_999_999, 199_999_999, 200_000_000),
        ("load", "other_load", 2.0, 2.1, 1.0, 0.9),  # of four cores
    ],
)
def test_it_pauses_beyond_one_limit_and_goes_on_at_the_other(kind, change, last_good, first_bad, last_paused, resumed):
    def with_(value):
        return replace(LAPTOP, **{change: value})

    assert kinds(with_(last_good)) == []
    assert kinds(with_(first_bad)) == [kind]
    assert kinds(with_(last_paused)) == []
    assert kinds(with_(last_paused), paused_for=[kind]) == [kind]
    assert kinds(with_(resumed), paused_for=[kind]) == []


def test_what_was_no_reason_does_not_become_one_by_a_pause():
    steady = replace(LAPTOP, temperature=75.0, other_load=1.5)
    assert kinds(steady, paused_for=["temperature"]) == ["temperature"]
    assert kinds(replace(steady, temperature=60.0), paused_for=["temperature"]) == []


def test_a_battery_that_charges_is_no_reason():
    assert kinds(replace(LAPTOP, battery=3, on_battery=False), paused_for=KINDS[:3]) == []
    assert kinds(replace(LAPTOP, battery=None)) == []


def test_a_reason_says_its_value_and_its_limit():
    bad = Readings(82.4, True, 12, 61_500_000, 3.26, 4)
    assert [reason.text for reason in reasons(bad, LIMITS)] == [
        "82 °C, resumes below 70",
        "battery at 12 %, resumes at 40 or when plugged in",
        "62 MB of memory left, resumes at 200",
        "other programs use 3.3 of 4 cores, resumes below 1.0",
    ]


def test_the_default_temperature_is_the_devices(tmp_path):
    assert limits(None, 30, 100_000_000, 0.4, tmp_path) == Limits()
    write(tmp_path, {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"})
    assert limits(None, 30, 1, 0.4, tmp_path).pause_temperature == 80
    chosen = limits(60.0, 95, 5, 0.5, tmp_path)
    assert chosen == Limits(60.0, 50.0, 95, 100, 5, 10, 0.5, 0.25)


def test_a_device_is_read_from_its_kernels_files(tmp_path):
    write(tmp_path, BEFORE | {
        "proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n",
        "sys/class/thermal/thermal_zone0/temp": "83276\n",
        "sys/class/power_supply/BAT0/type": "Battery\n",
        "sys/class/power_supply/BAT0/status": "Discharging\n",
        "sys/class/power_supply/BAT0/capacity": "41\n",
        "sys/class/power_supply/AC/type": "Mains\n",
        "sys/class/power_supply/AC/online": "0\n",
    })  # fmt: skip
    load = OtherLoad(tmp_path, {0, 1})
    assert readings(tmp_path, load) == Readings(83.276, True, 41, 3000000 * 1024, None, 2)  # no second has passed
    write(tmp_path, AFTER | {"sys/class/power_supply/AC/online": "1\n"})
    assert readings(tmp_path, load) == Readings(83.276, False, 41, 3000000 * 1024, 0.6, 2)


def test_the_memory_is_that_of_the_container(tmp_path):
    write(tmp_path, {
        "proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\n",
        "proc/self/cgroup": "0::/docker/abc\n",
        "sys/fs/cgroup/docker/abc/memory.max": "1073741824\n",
        "sys/fs/cgroup/docker/abc/memory.current": "1073000000\n",
        "sys/fs/cgroup/docker/abc/memory.stat": "anon 900000000\ninactive_file 50000000\n",
    })  # fmt: skip
    found = readings(tmp_path)
    assert found == Readings(memory_left=1073741824 - 1023000000)
    assert kinds(found) == ["memory"]


def test_only_the_cores_that_the_process_may_use_count(tmp_path):
    load = OtherLoad(write(tmp_path, BEFORE), {1})
    own = AFTER["proc/self/stat"].replace("500 80 35 15", "160 20 5 5")  # 60 ticks
    write(tmp_path, AFTER | {"proc/self/stat": own})
    assert load.read() == pytest.approx((340 - 60) / 1000)
    assert load.cores == 1


def test_the_load_is_that_of_the_last_half_minute(tmp_path):
    def after(seconds, busy):
        stat = f"cpu0 {busy * 100} 0 0 {(seconds - busy) * 100} 0 0 0 0 0 0\n"
        write(tmp_path, {"proc/stat": stat, "proc/self/stat": "1 (a) R " + "0 " * 40})

    after(0, 0)
    load = OtherLoad(tmp_path, {0})
    found = []
    for seconds, busy in ((10, 10), (20, 10), (30, 10), (40, 10), (50, 10)):  # busy for the first ten seconds
        after(seconds, busy)
        found.append(load.read())
    assert found == pytest.approx([1, 1 / 2, 1 / 3, 0, 0])


def test_a_core_that_is_switched_off_makes_no_load(tmp_path):
    load = OtherLoad(write(tmp_path, AFTER), {0, 1})
    write(tmp_path, {"proc/stat": "cpu0 1700 150 600 8950 70 15 25 100 130 0\n"})
    assert load.read() is None
    write(tmp_path, {"proc/stat": "cpu0 1800 150 600 9850 70 15 25 100 130 0\n"})
    assert load.read() == pytest.approx(0.1)


def test_a_device_without_these_files_has_no_readings(tmp_path):
    assert readings(tmp_path, OtherLoad(tmp_path)) == Readings()


def test_this_device_has_a_load_and_this_process_a_part_in_it():
    load, begun = OtherLoad(), os.times()
    while (found := load.read()) is None or os.times().user == begun.user:
        pass  # works for a second
    assert 0 <= found <= load.cores
    assert load._seen[-1].own > load._seen[0].own


def test_the_limits_of_each_kind_have_a_gap():
    chosen = Limits()
    assert chosen.resume_temperature < chosen.pause_temperature
    assert chosen.resume_battery > chosen.pause_battery
    assert chosen.resume_memory > chosen.min_memory
    assert chosen.resume_other_load < chosen.max_other_load < 0.5
    assert watch.WINDOW > 0
