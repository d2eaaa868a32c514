"""Settings: what is written is read back, and what is wrong is named."""

import re

import pytest

from comigs_edge import config
from comigs_edge.config import BaseConfig
from comigs_edge.errors import ComigsError

BASE = BaseConfig("tiny", "0" * 64, 123)


@pytest.fixture
def write(tmp_path):
    def make(old="", new=""):
        path = tmp_path / "config.toml"
        path.write_text(config.text(BASE, "auto", None).replace(old, new) if old else config.text(BASE, "auto", None))
        return path

    return make


def test_the_written_file_holds_the_defaults(write):
    assert config.read(write()) == config.Config(BASE)


def test_every_commented_default_is_the_real_one(tmp_path, write):
    """The comments cannot drift: with all of them switched on, nothing changes but what comes from the profile."""
    text = re.sub(r"^# (?=\w+ = )", "", write().read_text(), flags=re.M)
    path = tmp_path / "all.toml"
    path.write_text(text)
    found, defaults = config.read(path), config.Config(BASE)
    assert (found.model.specialists, found.train.batch, found.train.context) == (1, 8, 128)  # profile auto
    assert found.model.experts_per_token == 2
    for section in ("train", "data", "evaluate", "export", "chat"):
        wanted = getattr(defaults, section)
        for name, value in vars(getattr(found, section)).items():
            assert getattr(wanted, name) in (value, None), name


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# rank = 8", "lora_rank = 8", r"unknown key 'lora_rank' in \[model\]; did you mean 'rank'"),
        ("# rank = 8 ", 'rank = "8" ', "model.rank = '8' must be int"),
        ("# rank = 8 ", "rank = 0 ", "model.rank = 0 must be between 1 and 1024"),
        ("# rank = 8 ", "rank = true ", "model.rank = True must be int"),
        ("[base]", "[bass]", r"unknown key 'bass' at the top; did you mean 'base'"),
        ("# training = 0.8", "training = 0.98", "data.validation = 0.1 must be between"),
        ('name = "tiny"', "", r"name missing in \[base\]"),
        ("[model]", "[model", "cannot be read"),
        ('profile = "auto"', 'profile = "pi9"', "profile 'pi9' does not exist"),
    ],
)
def test_a_mistake_is_named(write, old, new, message):
    with pytest.raises(Exception, match=message) as caught:
        config.read(write(old, new))
    assert isinstance(caught.value, (ComigsError, config.profiles.ProfileError))
