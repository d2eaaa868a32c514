"""Which bases a device carries, `comigs-edge bases`, and another base for a home that is there."""

import json
from dataclasses import replace

import pytest

import profiles
from comigs_edge.base.catalogue import CATALOGUE, DEFAULT_BASE, PACKAGED_BASES, find_base
from comigs_edge.base.hparams import read_hparams
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import versions
from comigs_edge.planning.bases import known, predict, read_candidate, recommend
from comigs_edge.planning.speed import Speed, measure_speed
from profiles.detect import detect
from quantize.gguf_file import GGUFFile
from tests.tiny import some_text, write_llama

BITS = {"Q8_0": 8.5, "Q4_0": 4.5}  # of a weight, with its share of the block's scale
SLOW, QUICK = Speed(1e10, 3e9), Speed(1e13, 1e11)
ROOM = 10**12
# A tiny model of each architecture and kind of tokenizer: how text is split before merges, None: SentencePiece's.
TINY = {
    "smollm2-135m-instruct-q8_0": {"pre": "smollm"},
    "smollm2-360m-instruct": {"pre": "smollm"},
    "tinyllama-1.1b-chat": {
        "pre": None,
        "template": "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    },
    "qwen2.5-0.5b-instruct": {"pre": "qwen2", "bias": True},
    "qwen3-0.6b": {"pre": "qwen2", "head_norms": True},
    "llama-3.2-1b-instruct": {"pre": "llama-bpe", "rope_factors": True, "add_bos": True},
}


def device(memory):
    """This one, with so much memory and all of it free."""
    return replace(detect(), memory=memory, memory_available=memory, memory_limit=None, memory_left=None)


def fits(memory, speed, profile="auto", disk=ROOM):
    return [predict(each, device(memory), profiles.load(profile), speed, disk) for each in known()]


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_shape_of_an_entry_has_the_weights_that_fill_its_file(name):
    entry = CATALOGUE[name]
    shape = entry.shape
    block = shape.width * (2 * shape.num_heads + 2 * shape.num_kv_heads) * shape.head_width + 3 * shape.width * shape.ff_width
    weights = shape.num_blocks * block + (2 - entry.is_tied) * shape.vocab_size * shape.width
    written = weights * BITS[entry.format] / 8e6
    assert 0.8 * entry.megabytes < written < 1.01 * entry.megabytes  # embeddings may have more bits


def test_the_shape_of_the_smallest_entry_is_what_its_other_file_says():
    _, path = find_base(DEFAULT_BASE)
    found = read_hparams(GGUFFile(path))
    assert replace(found, norm_eps=round(found.norm_eps, 9)) == CATALOGUE["smollm2-135m-instruct-q8_0"].shape


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_tiny_model_like_each_entry_is_trained_and_runs_as_in_llama_cpp(name, run, home, tmp_path):
    entry = CATALOGUE[name]
    shape = entry.shape
    heads = shape.num_heads // shape.num_kv_heads
    base = write_llama(
        tmp_path / "tiny.gguf", architecture=shape.architecture, heads=heads, kv_heads=1, head=shape.head_width // 2,
        width=32 * heads, tied=entry.is_tied, quantised=entry.format, **TINY[name],
    )  # fmt: skip
    run("init", "--base", base)
    settings = (home / "config.toml").read_text()
    quick = "[train]\nbatch = 2\ncontext = 64\nvalidation_rows = 4\nrouter_period = 2\nrouter_steps = 1\n"
    (home / "config.toml").write_text(settings.replace("[train]\n", quick))
    (tmp_path / "notes.txt").write_text(some_text(20))
    run("data", "add", tmp_path / "notes.txt")
    assert json.loads(run("train", "--steps", 2, "--json").stdout)["finished"]
    if versions(home / "adapters"):
        theirs, ours = (
            json.loads(run("evaluate", "--json", "--engine", engine).stdout)["bits_per_byte"] for engine in ("llama.cpp", "torch")
        )
        assert ours["base"] == pytest.approx(theirs["base"], rel=2e-2)  # llama.cpp rounds what it multiplies 4 and 8 bits with
        assert ours["mixture"] == pytest.approx(theirs["mixture"], rel=2e-2)


def test_on_a_small_and_slow_board_no_larger_base_is_recommended():
    assert recommend(fits(1_900_000_000, SLOW, "pi4")) == DEFAULT_BASE
    found = fits(1_200_000_000, SLOW, "pi4")
    assert " takes " in found[-1].hindrance
    assert not found[0].hindrance


def test_on_a_quick_machine_the_best_talker_is_recommended_if_it_fits():
    assert recommend(fits(64_000_000_000, QUICK)) == list(CATALOGUE)[-1]
    small = fits(3_000_000_000, QUICK)
    best = recommend(small)
    assert best in CATALOGUE
    assert all(fit.hindrance or fit.memory < 3_000_000_000 for fit in small)


def test_the_shipped_weights_in_another_format_are_no_better_talker():
    only = [fit for fit in fits(64_000_000_000, QUICK) if fit.name.startswith(DEFAULT_BASE)]
    assert recommend(only) == DEFAULT_BASE


def test_a_base_without_room_on_the_disk_is_not_recommended():
    found = fits(64_000_000_000, QUICK, disk=100_000_000)
    assert recommend(found) is None
    assert all("MB of the disk, and 100 are free" in fit.hindrance for fit in found)


def test_a_base_that_is_twice_as_large_takes_longer_and_talks_more_slowly():
    small, large = fits(64_000_000_000, SLOW)[:2]
    assert small.minutes < large.minutes
    assert small.tokens_per_second > large.tokens_per_second
    assert small.memory < large.memory


def test_without_a_measurement_memory_is_said_and_no_time(tiny_path):
    fit = predict(read_candidate("tiny", tiny_path), device(4 * 10**9), profiles.load("auto"), None, ROOM)
    assert fit.memory > 0
    assert fit.minutes is fit.tokens_per_second is None
    assert not fit.is_good


def test_the_quick_measurement_gives_rates():
    assert all(rate > 1e7 for rate in measure_speed(1))


@pytest.fixture
def pulled(tmp_path, monkeypatch):
    """A folder of bases with one in it, a broken one and half of one; the default base is none of this machine's."""
    folder = tmp_path / "bases"
    folder.mkdir()
    monkeypatch.setenv("COMIGS_EDGE_BASES", str(folder))
    write_llama(folder / "mine.gguf")
    (folder / "broken.gguf").write_bytes(b"GGUF")
    (folder / ".half.gguf.part").write_bytes(b"half")
    return folder


def test_the_list_says_what_fits_what_is_here_and_which_one_the_home_has(run, home, pulled):
    run("init", "--base", "mine")
    found = json.loads(run("bases", "list", "--no-measure", "--json").stdout)
    by_name = {fit["name"]: fit for fit in found["fits"]}
    assert set(by_name) >= {*CATALOGUE, "mine", "broken"}
    assert by_name["mine"]["memory"] > 0
    assert "broken.gguf" in by_name["broken"]["hindrance"]
    assert found["home"] == "mine"
    assert set(found["here"]) == {"mine", "broken"}
    result = run("bases", "list", "--no-measure")
    assert "measuring" not in result.stderr
    shown = result.stdout
    assert "this home's" in shown
    assert "takes" in shown


def test_a_pulled_base_is_deleted_and_never_the_one_of_this_home(run, home, pulled):
    run("init", "--base", "mine")
    assert "mine is the base of" in run("bases", "rm", "mine", code=1).stderr
    assert (pulled / "mine.gguf").exists()
    run("bases", "rm", "half")
    assert json.loads(run("bases", "rm", "broken", "--json").stdout) == {"name": "broken", "bytes": 4}
    assert sorted(path.name for path in pulled.iterdir()) == ["mine.gguf"]
    for name in ("broken", "../mine", "qwen3-0.6b"):
        assert "was pulled" in run("bases", "rm", name, code=1).stderr.replace("\n", " ")


def test_init_without_a_base_says_which_others_fit_and_recommends_one(run, home, monkeypatch, tiny_path):
    monkeypatch.setattr("comigs_edge.planning.speed.measure_speed", lambda threads: QUICK)
    monkeypatch.setattr("profiles.detect.detect", lambda folder: device(64 * 10**9))
    monkeypatch.setitem(PACKAGED_BASES, DEFAULT_BASE, ("tests", str(tiny_path), ""))
    shown = run("init").stdout
    assert "bases that this device carries" in shown
    assert "comigs-edge bases pull" in shown
    assert shown.splitlines()[-1] == "next: comigs-edge data add FOLDER"
    found = json.loads(run("init", "--json").stdout)
    assert found["made"] is False
    assert found["recommended"] in CATALOGUE


def test_another_base_keeps_text_and_settings_and_says_what_is_lost(run, ready, tmp_path, tiny_path):
    run("train", "--steps", 2)
    settings = (ready / "config.toml").read_text()
    (ready / "config.toml").write_text(settings.replace("# steps = 200", "steps = 7"))
    home = Home(ready)
    before, text = home.settings(), home.documents_file.read_bytes()
    other = write_llama(tmp_path / "other.gguf", seed=1)
    result = run("init", "--force", "--base", other)
    after = home.settings()
    assert after.base.name == "other"
    assert replace(after, base=before.base) == before
    assert home.documents_file.read_bytes() == text
    said = result.stdout.replace("\n", " ")
    assert "adapters/ keeps it (1 version of tiny) until 5 newer ones are there" in said
    assert f"comigs-edge init --force --base {tiny_path}" in said
    assert result.stdout.splitlines()[-1] == "next: comigs-edge train --fresh"


def test_a_base_that_is_put_back_has_its_model_again(run, ready, tiny_path, tmp_path):
    run("train", "--steps", 2)
    answer = run("chat", "--prompt", "the hen", "--temperature", 0).stdout
    run("init", "--force", "--base", write_llama(tmp_path / "other.gguf", seed=1))
    run("init", "--force", "--base", tiny_path)
    assert run("chat", "--prompt", "the hen", "--temperature", 0).stdout == answer
