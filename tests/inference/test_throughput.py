"""How fast the models run: what is measured, what is written for it, and that nothing of it stays."""

import json
import os
import signal
import subprocess
import sys
import time

import llama_cpp
import pytest

from comigs_edge import llamacpp
from comigs_edge.commands import bench as command
from comigs_edge.errors import ComigsError
from comigs_edge.inference import throughput as speed
from comigs_edge.inference.throughput import Candidate, Measured, Sample, Work
from comigs_edge.nn.experts import ExpertsConfig
from quantize.gguf_file import GGUFFile
from tests.conftest import divergence, llama_logits
from tests.tiny import write_llama

IDS = list(range(5, 60))
FORMS = {"parallel": ExpertsConfig(1, form="parallel", expert_width=32), "lora": ExpertsConfig(1), "hot": ExpertsConfig(1)}


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_path):
    """Where the models are written while there is no home; the default base is the tiny one."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(command, "DEFAULT_BASE", str(tiny_path))
    return folder


@pytest.fixture
def plans(tiny_path):
    base = GGUFFile(tiny_path)
    return [speed.plan(base, kind, layout, "hot" if kind == "hot" else "merged", "F16") for kind, layout in FORMS.items()]


def measured(run, *arguments):
    return json.loads(run("bench", "--quick", "--json", "--threads", 1, *arguments).stdout)


def interrupted(monkeypatch, event):
    """Something happens when the second model is measured."""
    calls = []

    def pace(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            event()
        return Sample((1, 1), (1.0, 1.0))

    monkeypatch.setattr(speed, "pace", pace)


def test_before_init_every_kind_is_measured_with_the_tokens_that_llama_cpp_counted(run, home, place):
    found = measured(run)
    assert list(found["models"]) == ["base", "parallel", "lora", "hot", "flash"]
    assert found["in_turn"]
    assert found["rounds"] == 3
    for model in found["models"].values():
        assert list(model["threads"]) == ["1"]
        parts = model["threads"]["1"]
        assert (parts["prompt"]["tokens"], parts["generation"]["tokens"]) == (64, 16)
        assert all(0 < part["lowest"] <= part["tokens_per_second"] <= part["highest"] for part in parts.values())
    assert found["experts"]["parallel"]["format"] == found["experts"]["lora"]["format"] == "Q8_0"
    assert found["experts"]["hot"]["format"] == "F16"
    assert {each["num_specialists"] for each in found["experts"].values()} == {1}
    assert not home.exists()
    assert not list(place.iterdir())


def test_ratios_are_quotients_of_the_medians():
    base = Measured("base", 100, None, None, {2: [Sample((64, 16), (s, 2 * s)) for s in (0.1, 0.4, 0.2)]})
    other = Measured("lora", 150, None, None, {2: [Sample((64, 16), (s, s)) for s in (0.4, 0.8, 1.6)]})
    assert base.rate(2, "prompt") == (64, pytest.approx(320), pytest.approx(160), pytest.approx(640))
    assert other.ratio(base, 2, "prompt") == pytest.approx(80 / 320)
    assert other.ratio(base, 2, "generation") == pytest.approx(20 / 40)


def test_the_ratios_that_are_printed_are_those_of_the_printed_medians(run, place):
    models = measured(run)["models"]
    for part in speed.PARTS:
        rates = {kind: model["threads"]["1"][part] for kind, model in models.items()}
        for rate in rates.values():
            quotient = rate["tokens_per_second"] / rates["base"]["tokens_per_second"]
            assert rate["ratio_to_base"] == pytest.approx(quotient, abs=2e-4)


def test_the_fastest_number_of_threads_is_that_of_the_quickest_answers():
    samples = {1: [Sample((64, 16), (0.1, 2.0))], 2: [Sample((64, 16), (0.3, 1.0))], 4: [Sample((64, 16), (0.1, 1.5))]}
    assert Measured("base", 1, None, None, samples).fastest_threads == 2


def test_in_a_home_its_base_and_settings_are_measured_and_nothing_stays(run, home, tiny_path):
    run("init", "--base", tiny_path)
    settings = home / "config.toml"
    settings.write_text(settings.read_text().replace("[quantize]\n", '[quantize]\nformat = "Q4_0"\n'))
    before = sorted(home.rglob("*"))
    found = measured(run)
    assert found["base"]["name"] == "tiny"
    assert found["base"]["megabytes"] == found["models"]["base"]["megabytes"] == round(tiny_path.stat().st_size / 1e6, 3)
    assert [found["experts"][kind]["format"] for kind in FORMS] == ["Q4_0", "Q4_0", "F16"]
    assert sorted(home.rglob("*")) == before


def test_models_that_are_measured_answer_like_the_base(tiny_path, tmp_path, plans):
    expected = llama_logits(tiny_path, IDS)
    written = speed.write(GGUFFile(tiny_path), plans, tmp_path)
    assert [each.kind for each in written] == list(FORMS)
    for each in written:
        assert GGUFFile(each.path).metadata["general.architecture"] == ("granitemoe" if each.kind == "parallel" else "llama")
        assert divergence(expected, llama_logits(each.path, IDS, each.adapters)) < 1e-4


def test_the_planned_sizes_are_those_of_the_files(tiny_path, tmp_path, plans):
    told = []
    written = speed.write(GGUFFile(tiny_path), plans, tmp_path, progress=lambda *pair: told.append(pair))
    for each, model in zip(plans, written, strict=True):
        assert each.size == pytest.approx(model.size, abs=6000)  # names and padding of the tensors
    assert told == sorted(told)
    assert told[-1][1] == sum(each.size for each in plans)


def test_a_full_disk_is_named_before_anything_is_written(run, place, monkeypatch):
    usage = type("Usage", (), {"free": 20_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    text = f"error: the models to measure take 1 MB for a while and {place} has 0 MB free; make room for"
    assert text in run("bench", code=1).stderr
    assert not list(place.iterdir())


def test_models_that_do_not_fit_into_the_memory_are_measured_one_after_the_other(tiny_path, tmp_path, plans):
    candidates = [Candidate("base", tiny_path), *speed.write(GGUFFile(tiny_path), plans, tmp_path)]
    assert speed.fits_together(candidates, 8_000_000_000)
    assert not speed.fits_together(candidates, 500_000_000)
    told = []
    found, left_out = speed.measure(candidates, Work(8, 4, 2), [1, 2], False, lambda *pair: told.append(pair))
    assert [each.kind for each in found] == ["base", *FORMS]
    assert not left_out
    assert all(
        {count: [s.tokens for s in row] for count, row in each.samples.items()} == {1: [(8, 4)] * 2, 2: [(8, 4)] * 2}
        for each in found
    )
    assert told == [(number, 20) for number in range(1, 21)]


def test_memory_is_what_the_process_grew_by(tiny_path, tmp_path):
    large = write_llama(tmp_path / "large.gguf", width=512, ff_width=2048, blocks=4)
    (small, big), _ = speed.measure([Candidate("base", tiny_path), Candidate("large", large)], Work(8, 1, 1), [1], True)
    assert big.size > 60_000_000
    assert big.peak >= big.resident > 0.9 * big.size
    assert small.resident < big.resident / 2


def test_threads_are_those_that_llama_cpp_uses(tiny_path):
    llama = llamacpp.load(tiny_path, n_ctx=64, n_threads=1, n_threads_batch=1)
    llamacpp.use_threads(llama, 3)
    assert (llama_cpp.llama_n_threads(llama.ctx), llama_cpp.llama_n_threads_batch(llama.ctx)) == (3, 3)
    llama.close()


def test_a_cache_in_blocks_is_measured_where_the_heads_are_whole_blocks(run, place, tmp_path, monkeypatch):
    assert "flash_q8_0" in measured(run)["left_out"]  # heads of 16 numbers
    wide = write_llama(tmp_path / "wide.gguf", head=32)
    monkeypatch.setattr(command, "DEFAULT_BASE", str(wide))
    found = measured(run)
    assert "flash_q8_0" in found["models"]
    assert not found["left_out"]


def test_a_form_that_the_base_cannot_have_is_left_out_and_said(run, place, tmp_path, monkeypatch):
    path = write_llama(tmp_path / "qwen3.gguf", architecture="qwen3", head_norms=True, head=32)
    monkeypatch.setattr(command, "DEFAULT_BASE", str(path))
    found = measured(run)
    assert list(found["models"]) == ["base", "lora", "hot", "flash", "flash_q8_0"]
    assert "no architecture for parallel experts beside a qwen3 base" in found["left_out"]["parallel"]
    assert "left out: parallel experts: llama.cpp has no" in run("bench", "--quick", "--threads", 1).stdout


def test_the_table_is_followed_by_the_fastest_number_of_threads_and_the_next_command(run, place, monkeypatch):
    monkeypatch.setattr("profiles.available_cores", lambda: 2)
    shown = run("bench", "--quick", "--threads", 2).stdout
    assert all(text in shown for text in ("with 1 thread ", "with 2 threads ", "LoRA experts, hot", "Chat is fastest with"))
    assert shown.splitlines()[-1] == "next: comigs-edge init"


def test_the_file_holds_what_was_printed(run, place, tmp_path):
    missing = run("bench", "--output", tmp_path / "new" / "bench.json", code=1).stderr
    assert f"mkdir -p {tmp_path / 'new'}" in missing
    (tmp_path / "new").mkdir()
    found = measured(run, "--output", tmp_path / "new" / "bench.json")
    assert json.loads((tmp_path / "new" / "bench.json").read_text()) == found
    assert f"{tmp_path} is a folder; name a file in it" in run("bench", "--output", tmp_path, code=1).stderr


def test_a_number_of_threads_that_there_is_not_is_refused(run, place):
    cores = len(os.sched_getaffinity(0))
    text = run("bench", "--threads", cores + 1, code=1).stderr
    assert text == f"error: --threads {cores + 1} is more than the {cores} cores that this process may use; name 1 to {cores}\n"
    run("bench", "--threads", 0, code=2)


def test_a_busy_device_is_said(run, place, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (1.7, 0.1, 0.1))
    result = run("bench", "--quick", "--json", "--threads", 1)
    assert "the load of the last minute is 1.7: another program" in result.stderr
    assert json.loads(result.stdout)["load_before"] == 1.7
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 1.7, 1.7))
    assert run("bench", "--quick", "--json", "--threads", 1).stderr.strip() == ""


def test_an_end_by_signal_or_error_leaves_no_files(run, place, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    interrupted(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run("bench", code=128 + signal.SIGTERM)
    interrupted(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    # A shell starts what runs in the background with SIGINT ignored, these tests too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run("bench", code=None).exit_code != 0
    finally:
        signal.signal(signal.SIGINT, before)

    def fail():
        assert list(place.glob("comigs-edge-bench-*/*.gguf"))
        raise ComigsError("no")

    interrupted(monkeypatch, fail)
    run("bench", code=1)
    assert not list(place.iterdir())
    assert signal.getsignal(signal.SIGTERM) is handler


def test_what_a_kill_left_behind_is_removed_a_day_later(run, place):
    for name, age in (("old", 2 * 86_400), ("new", 60)):
        folder = place / f"{command.PREFIX}{name}"
        folder.mkdir()
        (folder / "lora.gguf").write_bytes(b"x")
        os.utime(folder, (time.time() - age,) * 2)
    measured(run)
    assert [path.name for path in place.iterdir()] == [f"{command.PREFIX}new"]


def test_help_does_not_load_torch_or_llama_cpp():
    code = (
        "import sys; from typer.testing import CliRunner; from comigs_edge.cli import app;"
        "r = CliRunner().invoke(app, ['bench', '--help']).exit_code;"
        "print(r, {'torch', 'llama_cpp'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "0 set()\n"
