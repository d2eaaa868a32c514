"""The coordinator's unit: what systemd says of it, what is written and told, and that its command line starts a coordinator."""

import json
import os
import shlex
import subprocess

import pytest

from coordinator import __main__ as program
from coordinator import service, systemd
from coordinator.protocol.errors import CoordinatorError
from tests.units import exposure, parsed, stand_in, verify

SOMEBODY = os.getuid() or 1000


@pytest.fixture
def owned(tmp_path):
    """A folder of a person's, also where root runs the tests."""
    folder = tmp_path / "my data"
    folder.mkdir()
    os.chown(folder, SOMEBODY, -1)
    return folder


@pytest.fixture
def units(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("USER", "somebody")
    return tmp_path / "config" / "systemd" / "user"


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path, owned):
    for system in (False, True):
        for data in (owned, service.SYSTEM_DATA):
            (tmp_path / service.UNIT).write_text(service.unit(data, ["--port", "9000"], system))
            verify(tmp_path, [service.UNIT], *([] if system else ["--user"]))


def test_systemd_scores_the_systems_units_as_little_exposed(tmp_path, owned):
    for data in (owned, service.SYSTEM_DATA):
        assert exposure(tmp_path, service.UNIT, service.unit(data, [], True)) <= 4.0


def test_a_systems_unit_does_not_run_as_root_because_root_made_the_folder(owned, monkeypatch):
    stat = os.stat_result((0o40700, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    monkeypatch.setattr(type(owned), "stat", lambda self, **options: stat)
    with pytest.raises(CoordinatorError, match="sudo chown -R USER"):
        service.unit(owned, [], True)


def test_systemds_check_would_find_a_wrong_word(tmp_path):
    (tmp_path / service.UNIT).write_text(
        service.unit(service.SYSTEM_DATA, [], True).replace("Restart=on-failure", "Restart=sometimes")
    )
    with pytest.raises(AssertionError, match="sometimes"):
        verify(tmp_path, [service.UNIT])


def test_the_unit_says_what_the_service_may_do(tmp_path):
    unit = parsed(service.unit(tmp_path, [], False))
    found = unit["Service"]
    assert (found["Restart"], found["RestartSec"], found["MemoryMax"]) == ("on-failure", "15", "1G")
    assert (found["ProtectSystem"], found["ReadWritePaths"]) == ("strict", str(tmp_path))
    assert found["NoNewPrivileges"] == found["PrivateTmp"] == "yes"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Install"]["WantedBy"] == "default.target"
    assert not {"User", "DynamicUser", "CapabilityBoundingSet", "PrivateDevices"} & set(found)


def test_the_systems_unit_runs_as_nobody_in_particular_or_as_the_folders_owner(tmp_path, owned):
    alone = parsed(service.unit(service.SYSTEM_DATA, [], True))["Service"]
    assert (alone["DynamicUser"], alone["StateDirectory"]) == ("yes", "comigs-coordinator")
    found = parsed(service.unit(owned, [], True))["Service"]
    assert (found["User"], found["ReadWritePaths"]) == (str(SOMEBODY), f'"{owned}"')
    assert alone["LimitNOFILE"] == found["LimitNOFILE"] == "65536"
    with pytest.raises(CoordinatorError, match="there is no folder"):
        service.unit(tmp_path / "nowhere", [], True)


@pytest.mark.parametrize("name", ["plain", "two words", 'a "quote"', "100%", "$HOME", "back\\slash", "émile"])
def test_every_path_survives_quoting(name, tmp_path):
    line = parsed(service.unit(tmp_path / name, [], False))["Service"]["ExecStart"]
    # systemd's quotes are the shell's, but for % and $, which it doubles
    words = shlex.split(
        line.replace("$$", "$").replace("%%", "%").replace("$", "\\$") if '"' not in name else line.replace("%%", "%")
    )
    assert words[words.index("--data") + 1].replace("\\$", "$") == str(tmp_path / name)


def test_a_line_break_cannot_get_into_a_unit(tmp_path):
    with pytest.raises(CoordinatorError, match="control characters"):
        service.unit(tmp_path / "a\nExecStartPre=evil", [], False)


def test_install_writes_the_unit_and_tells_systemd(units, tmp_path, monkeypatch, capsys):
    told = stand_in(tmp_path, monkeypatch)
    program.main(["service", "install", "--port", "9000", "--open"])
    assert told() == [
        "systemctl --user daemon-reload",
        f"systemctl --user enable {service.UNIT}",
        f"systemctl --user restart {service.UNIT}",
        "loginctl enable-linger somebody",
    ]
    line = parsed((units / service.UNIT).read_text())["Service"]["ExecStart"]
    assert line.endswith(f"serve --data {tmp_path}/share/comigs-coordinator --port 9000 --open")
    assert (tmp_path / "share" / "comigs-coordinator").stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().out.splitlines()[-1] == "next: comigs-coordinator invite"


def test_where_systemd_cannot_be_reached_the_commands_are_shown(units, tmp_path, monkeypatch, capsys):
    stand_in(tmp_path, monkeypatch, code=1)
    program.main(["service", "install", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == [str(units / service.UNIT)]
    assert found["left"][0] == "systemctl --user daemon-reload"
    assert found["left"][-1] == "sudo loginctl enable-linger somebody"


def test_uninstall_deletes_the_unit_and_keeps_the_data(units, tmp_path, monkeypatch, capsys):
    told = stand_in(tmp_path, monkeypatch)
    program.main(["service", "install"])
    program.main(["service", "uninstall"])
    assert f"systemctl --user disable --now {service.UNIT}" in told()
    assert list(units.iterdir()) == []
    assert (tmp_path / "share" / "comigs-coordinator").exists()
    with pytest.raises(SystemExit):
        program.main(["service", "uninstall"])
    assert "nothing was installed there" in capsys.readouterr().err


def test_print_only_prints(units, tmp_path, monkeypatch, capsys):
    told = stand_in(tmp_path, monkeypatch)
    program.main(["service", "install", "--print"])
    assert parsed(capsys.readouterr().out)["Service"]["Type"] == "exec"
    assert not units.exists()
    assert told() == []


def test_status_says_whether_it_is_there(units, tmp_path, monkeypatch, capsys):
    stand_in(tmp_path, monkeypatch)
    program.main(["service", "status", "--json"])
    assert json.loads(capsys.readouterr().out)["installed"] is False
    program.main(["service", "install"])
    program.main(["service", "status"])
    assert capsys.readouterr().out.splitlines()[-1] == f"next: journalctl --user --unit {service.UNIT}"


def test_a_unit_for_the_whole_system_is_roots(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CoordinatorError, match="sudo comigs-coordinator service install --system"):
        systemd.check_rights(True, "comigs-coordinator service install --system")


def test_the_units_command_line_starts_a_coordinator(tmp_path):
    line = parsed(service.unit(tmp_path / "data", ["--port", "0", "--host", "127.0.0.1"], False))["Service"]["ExecStart"]
    with subprocess.Popen(shlex.split(line), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline().startswith("coordinator  https://127.0.0.1:")
        process.terminate()
        process.stdout.read()
        assert process.wait(20) == 0
