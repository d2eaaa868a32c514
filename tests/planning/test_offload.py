"""What a GPU does for llama.cpp: described devices, and that the plan's layers reach it."""

import json
from dataclasses import replace

import pytest

from comigs_edge import llamacpp
from comigs_edge.home import folder as homes
from comigs_edge.planning import offload
from comigs_edge.planning import plan as planning
from profiles import detect
from profiles.chat import GPU
from tests.inference.served import learn

ORIN = GPU(name="Orin", free=3 * 10**9, is_shared=True)


@pytest.fixture
def loaded(monkeypatch):
    """The options with which llama.cpp was asked to load weights; it has no GPU, and computes the layers all the same."""
    seen, real = [], llamacpp.load

    def load(path, **options):
        seen.extend([] if "vocab_only" in options else [options])
        return real(path, **options)

    monkeypatch.setattr(llamacpp, "load", load)
    return seen


def test_here_llama_cpp_finds_what_torch_finds(monkeypatch):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert offload.find(replace(detect.detect(), gpu=None)) == (None, "no GPU that llama.cpp can use")
    gpu, lacking = offload.find(replace(detect.detect(), gpu="integrated (Tegra)"))
    assert (gpu, lacking) == (None, "a llama.cpp that was built without CUDA, see: comigs-edge doctor")


def test_layers_of_the_plan_reach_llama_cpp_in_chat(ready, run, monkeypatch, loaded):
    monkeypatch.setattr(llamacpp, "find_gpu", lambda: ORIN)
    run("chat", "--base", "--prompt", "hen")
    run("chat", "--base", "--prompt", "hen", "--plan", "gpu_layers=0")
    names = ("n_gpu_layers", "offload_kqv", "op_offload")
    assert [tuple(each[name] for name in names) for each in loaded] == [(3, True, True), (0, False, False)]
    shown = json.loads(run("plan", "--no-measure", "--json").stdout)["chat"]
    assert (shown["gpu_layers"], shown["reasons"]["gpu_layers"]) == (3, "all: the memory of Orin is the device's own")


def test_layers_of_the_plan_reach_llama_cpp_in_evaluate_and_bench(ready, run, monkeypatch, loaded, tiny_base):
    learn(homes.locate(), tiny_base.hparams, 1)
    monkeypatch.setattr(llamacpp, "find_gpu", lambda: ORIN)
    run("evaluate")
    run("evaluate", "--plan", "gpu_layers=0")
    assert [each["n_gpu_layers"] for each in loaded] == [3, 3, 0, 0]
    loaded.clear()
    shown = run("bench", "--quick", "--threads", 1).stdout
    assert {each["n_gpu_layers"] for each in loaded} == {3}
    assert "3 layers were computed by the GPU" in shown


def test_layers_in_the_settings_hold_for_all_and_are_refused_without_a_gpu(ready, run):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("# gpu_layers = 0", "gpu_layers = 2"))
    for command in (["chat", "--base", "--prompt", "hen"], ["bench", "--quick"]):
        assert "gpu_layers = 2 is asked for and there is no GPU that llama.cpp can use" in run(*command, code=1).output
    assert "a plan has no line 'threads'" in run("bench", "--plan", "threads=2", code=1).output


def test_a_plan_for_a_described_jetson_keeps_every_layer_on_its_gpu(ready, tiny_path, monkeypatch):
    monkeypatch.setattr(llamacpp, "find_gpu", lambda: ORIN)
    settings = homes.locate().settings()
    device = replace(detect.detect(), gpu="integrated (Tegra)", has_unified_memory=True)
    plan = planning.chat_plan(settings, tiny_path, profile=settings.device(), device=device, size=10**6)
    assert plan.gpu_layers == 3
