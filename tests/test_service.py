"""The device's timer: what systemd says of it, what is written and told."""

import re

import pytest

from comigs_edge.commands import service
from tests.units import exposure, parsed, stand_in, verify


@pytest.fixture
def units(home, tmp_path, monkeypatch):
    """A home, and a folder for units that is not the developer's."""
    home.mkdir()
    (home / "config.toml").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("USER", "somebody")
    return tmp_path / "config" / "systemd" / "user"


def test_install_writes_timer_and_service_and_tells_systemd(units, run, home, tmp_path, monkeypatch):
    told = stand_in(tmp_path, monkeypatch)
    shown = run("service", "install", "--at", "02:30").output
    assert told() == [
        "systemctl --user daemon-reload",
        f"systemctl --user enable {service.TIMER}",
        f"systemctl --user restart {service.TIMER}",
        "loginctl enable-linger somebody",
    ]
    assert shown.splitlines()[-1] == "next: systemctl --user list-timers"
    timer = parsed((units / service.TIMER).read_text())
    assert timer["Timer"] == {"OnCalendar": "*-*-* 02:30:00", "RandomizedDelaySec": "45min", "Persistent": "true"}
    found = parsed((units / service.SERVICE).read_text())
    assert found["Unit"]["ConditionACPower"] == "true"
    assert found["Service"]["ExecStart"].endswith(" service run")
    assert found["Service"]["Environment"] == f"COMIGS_EDGE_HOME={home}"
    assert (found["Service"]["Nice"], found["Service"]["CPUSchedulingPolicy"]) == ("19", "idle")
    assert found["Service"]["IOSchedulingClass"] == "idle"
    verify(units, [service.TIMER, service.SERVICE], "--user")


def test_doctor_says_that_the_timer_of_another_version_is_to_be_installed_again(units, run, tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch)
    run("service", "install")
    assert "the timer was installed by another version" not in run("doctor", code=None).stdout
    file = units / service.SERVICE
    file.write_text(file.read_text().replace(" service run", " train"))  # as the first versions wrote it
    shown = run("doctor", code=None).stdout
    assert re.search(r"the timer was installed by another version, and runs: \S.* train\n +-> comigs-edge service install", shown)


def test_where_systemd_cannot_be_reached_the_commands_are_shown(units, run, tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, code=1)
    shown = run("service", "install").output
    assert f"  systemctl --user enable {service.TIMER}\n" in shown
    assert (units / service.TIMER).exists()


def test_print_only_prints(units, run, tmp_path, monkeypatch):
    told = stand_in(tmp_path, monkeypatch)
    shown = run("service", "install", "--print").output
    first, second = shown.split(f"# {service.TIMER}\n")
    assert parsed(first)["Service"]["Type"] == "exec"
    assert parsed(second)["Install"]["WantedBy"] == "timers.target"
    assert told() == []
    assert not units.exists()


def test_uninstall_deletes_both(units, run, tmp_path, monkeypatch):
    told = stand_in(tmp_path, monkeypatch)
    run("service", "install")
    run("service", "uninstall")
    assert f"systemctl --user disable --now {service.TIMER}" in told()
    assert list(units.iterdir()) == []
    assert "nothing was installed there" in run("service", "uninstall", code=1).output


def test_the_systems_unit_runs_as_the_homes_owner(units, run, home):
    shown = run("service", "install", "--print", "--system").output
    assert f"User={home.stat().st_uid}\n" in shown


def test_systemd_scores_the_systems_unit_as_little_exposed_and_it_keeps_its_gpu(units, run, tmp_path):
    shown = run("service", "install", "--print", "--system").output.partition(f"# {service.TIMER}")[0]
    assert exposure(tmp_path, service.SERVICE, shown) <= 4.0
    # each of these takes away devices that systemd does not know
    assert not {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock"} & set(parsed(shown)["Service"])


def test_a_wrong_time_and_a_missing_home_are_refused(units, run, home):
    assert "is no time of day" in run("service", "install", "--at", "25:00", code=2).output
    (home / "config.toml").unlink()
    assert "comigs-edge init" in run("service", "install", code=1).output
