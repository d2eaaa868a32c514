"""Settings: what is written is read back, and what is wrong is named."""

import re
from dataclasses import replace

import pytest

from comigs_edge.errors import ComigsError
from comigs_edge.home import config, config_file
from comigs_edge.home.config import BaseConfig

BASE = BaseConfig("tiny", "0" * 64, 123)


@pytest.fixture
def write(tmp_path):
    def make(old="", new=""):
        path = tmp_path / "config.toml"
        text = config_file.text(config.Config(base=BASE))
        path.write_text(text.replace(old, new) if old else text)
        return path

    return make


def test_the_written_file_holds_the_defaults(write):
    assert config_file.read(write()) == config.Config(base=BASE)


def test_every_commented_default_is_the_real_one(tmp_path, write):
    """The comments cannot drift: with all of them switched on, nothing changes but what comes from the profile."""
    switched_on = re.sub(r"^# (?=\w+ = )", "", write().read_text(), flags=re.M)
    path = tmp_path / "all.toml"
    path.write_text(switched_on)
    found, defaults = config_file.read(path), config.Config(base=BASE)
    assert (found.model.specialists, found.train.batch, found.train.context) == (1, 8, 128)  # profile auto
    assert found.model.experts_per_token == 2
    for section in ("train", "pause", "data", "evaluate", "quantize", "export", "chat"):
        wanted = getattr(defaults, section)
        for name, value in vars(getattr(found, section)).items():
            assert getattr(wanted, name) in (value, None), name
    assert found.storage() == replace(defaults, model=found.model).storage()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# rank = 8", "lora_rank = 8", r"unknown key 'lora_rank' in \[model\] .did you mean 'rank'"),
        ("# rank = 8 ", 'rank = "8" ', "model.rank = '8' must be a whole number between 1 and 1024"),
        ("# rank = 8 ", "rank = 0 ", "model.rank = 0 must be a whole number between 1 and 1024"),
        ("# rank = 8 ", "rank = true ", "model.rank = True must be a whole number"),
        ("[base]", "[bass]", r"unknown key 'bass' at the top .did you mean 'base'"),
        ("# training = 0.8", "training = 0.98", "data.validation = 0.1 must be between"),
        ('name = "tiny"', "", r"name missing in \[base\]"),
        ("[model]", "[model", "cannot be read"),
        ("# load = 0.4 ", "load = 40.0 ", "pause.load = 40.0 must be a number between 0.01 and 1"),
        ('# format = "Q8_0"', 'format = "Q3_0"', r"quantize.format = 'Q3_0' must be one of Q8_0, F16"),
        ('expert_form = "lora"', 'expert_form = "dora"', "model.expert_form = 'dora' must be one of lora, parallel"),
        ('profile = "auto"', 'profile = "pi9"', "profile 'pi9' does not exist"),
    ],
)
def test_a_mistake_is_named(write, old, new, message):
    with pytest.raises(Exception, match=message) as caught:
        config_file.read(write(old, new))
    assert isinstance(caught.value, (ComigsError, config.profiles.ProfileError))


def test_threads_without_a_plan_are_those_of_the_section_or_of_the_profile(write):
    cores = config.profiles.available_cores()
    assert [config_file.read(write()).threads(section) for section in ("train", "chat")] == [cores, cores]
    asked = config_file.read(write("# threads = 2", "threads = 3"))
    assert [asked.threads(section) for section in ("train", "chat")] == [3, 3]


def test_what_is_stored_follows_from_form_and_layout(write):
    # form, layout and format given -> format stored, share before fake quantisation, format faked
    for form, layout, name, expected in (
        ("lora", None, None, ("Q8_0", 1.0, None)),
        ("lora", None, "q4_0", ("Q4_0", 0.65, "Q4_0")),
        ("lora", "hot", None, ("F16", 1.0, None)),
        ("lora", None, "Q4_K", ("Q4_K", 1.0, None)),
        ("parallel", None, None, ("Q8_0", 0.0, "Q8_0")),
        *(("parallel", None, name, (name, 0.0, name)) for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")),
    ):
        settings = config_file.read(write('expert_form = "lora"', f'expert_form = "{form}"'))
        storage = settings.storage(layout, name)
        assert (storage.format, storage.start, storage.fake_format) == expected


def test_a_format_that_stands_where_it_stood_at_first_still_counts(write):
    assert config_file.read(write("[export]", '[export]\nformat = "Q4_0"')).storage().format == "Q4_0"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[export]", '[export]\nlayout = "hot"', 'layout = "hot" is for LoRA experts in F16 or F32, not for parallel experts'),
        ("# expert_width = 32", "expert_width = 20", "expert_width = 20 is not a multiple of 32, the block of Q8_0"),
    ],
)
def test_what_could_never_be_exported_is_refused_before_it_is_trained(write, old, new, message):
    path = write('expert_form = "lora"', 'expert_form = "parallel"')
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ComigsError, match=message):
        config_file.read(path)
