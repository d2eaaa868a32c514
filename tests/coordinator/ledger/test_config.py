"""config.toml: what is not understood is refused by name."""

from contextlib import closing
from dataclasses import asdict

import pytest

from coordinator.ledger.config import Config, last, note, read, template
from coordinator.ledger.database import Database
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.rounds import Rules
from coordinator.protocol.settings import tomllib


@pytest.mark.parametrize("data", [b"", bytes(300)])
def test_a_file_that_a_power_cut_emptied_or_filled_with_zeros_is_empty(tmp_path, data):
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    assert read(path, makes=False) is None
    assert path.read_bytes() == data
    assert read(path, makes=True) == Config()
    assert path.read_text() == template()


def test_the_template_shows_every_setting_with_its_default(tmp_path):
    assert read(tmp_path / "config.toml") == Config()
    assert (tmp_path / "config.toml").read_text() == template()
    shown = tomllib.loads(template().replace("\n# ", "\n"))
    assert shown == asdict(Config())


def test_a_setting_in_the_file_counts_and_a_flag_counts_more(tmp_path):
    (tmp_path / "config.toml").write_text("[rounds]\ngoal = 3\ndeadline_seconds = 60\n")
    config = read(tmp_path / "config.toml")
    assert (config.rounds.goal, config.rounds.deadline_seconds) == (3, 60.0)
    flags = {"goal": 0, "local_steps": None, "update_format": "int8"}
    config = config.with_values(flags)
    assert (config.rounds.goal, config.training.local_steps, config.training.update_format) == (0, 10, "int8")
    assert config.settings.update_format == "int8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "cannot be used"),
        ("[rounds]\ngaol = 3", r"unknown key 'gaol' in \[rounds\] .did you mean 'goal'"),
        ("[round]", "unknown key 'round' at the top .did you mean 'rounds'"),
        ("rounds = 3", r"rounds must be a section, \[rounds\]"),
        ("[[rounds]]", r"rounds must be a section, \[rounds\]"),
        ("training = []", r"training must be a section, \[training\]"),
        ("[rounds]\ngoal = '3'", "rounds.goal = '3' must be a whole number between 0 and 1024"),
        ("[rounds]\ngoal = 3.5", "rounds.goal = 3.5 must be a whole number"),
        ("[rounds]\ngoal = true", "rounds.goal = True must be a whole number"),
        ("[rounds]\nweights = 1", "rounds.weights = 1 must be one of uniform, tokens"),
        ("[rounds]\ngoal = -1", "rounds.goal = -1 must be a whole number between 0 and 1024"),
        ("[rounds]\ngoal = 1025", "goal = 1025 must be"),
        ("[rounds]\nmin_fraction = 0", "min_fraction"),
        ("[rounds]\nmin_fraction = nan", "min_fraction = nan"),
        ("[rounds]\ndeadline_seconds = inf", "deadline_seconds = inf"),
        ("[rounds]\naveraging = 'freeze'", "'freeze' must be one of separate, freeze-a, alternate"),
        ("[training]\nlocal_steps = 0", "local_steps"),
        ("[training]\nupdate_format = 'int4'", "must be one of float32, float16, int8"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_file_and_the_place(tmp_path, text, message):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(CoordinatorError, match=message) as refused:
        read(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CoordinatorError, match="cannot be used"):
        read(tmp_path / "config.toml")


@pytest.mark.parametrize("text", [None, ""])
def test_where_the_file_is_gone_the_settings_of_the_last_start_go_on_and_nothing_is_written(tmp_path, text, caplog):
    path, before = tmp_path / "config.toml", Config(rounds=Rules(min_devices=3))
    with closing(Database(tmp_path / "coordinator.db")) as database:
        assert last(database) is None
        note(database, before, has_file=True)
        if text is not None:
            path.write_text(text)
        assert read(path, makes=False) is None
        assert last(database) == before
        caplog.clear()
        note(database, before, has_file=False)
        assert caplog.messages == [
            "config.toml is gone or empty; the settings of the last start are in force: rounds.min_devices = 3"
        ]
    assert path.exists() == (text is not None)


def test_each_setting_that_changed_since_the_last_start_is_named_once(tmp_path, caplog):
    with closing(Database(tmp_path / "coordinator.db")) as database:
        note(database, Config(rounds=Rules(min_devices=3)), has_file=True)
        caplog.clear()
        for _ in range(2):
            note(database, Config(rounds=Rules(goal=2)), has_file=True)
    assert sorted(caplog.messages) == [
        "setting changed since the last start: rounds.goal = 2, it was 0",
        "setting changed since the last start: rounds.min_devices = 1, it was 3",
    ]


def test_the_flags_are_checked_too():
    with pytest.raises(CoordinatorError, match=r"the flags: rounds.goal = 2000"):
        Config().with_values({"goal": 2000})
    assert Config().with_values({"goal": 1024}) == Config(rounds=Rules(goal=1024))
