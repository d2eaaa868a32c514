"""The plan as commands show it, keep it while a training is interrupted, and follow it."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import profiles
from comigs_edge.commands.plan import Standing, summary
from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home.config import BaseConfig, Config, ModelConfig
from comigs_edge.planning import plan as planning
from comigs_edge.planning.plan import plan_experts
from profiles import ProfileError, detect
from profiles.chat import repacked_formats
from profiles.cost import Plan, Rates
from quantize.gguf_file import GGUFFile
from tests.tiny import write_llama

# What /proc/cpuinfo says of the instructions: an Intel Core i5-1240P and a Cortex-A78AE have none for bfloat16.
WITHOUT_BFLOAT16 = ("flags\t\t: fpu sse avx2 avx_vnni f16c\n", "Features\t: fp asimd fphp asimdhp asimddp\n")
WITH_BFLOAT16 = ("flags\t\t: fpu sse avx2 avx512f avx512_bf16\n", "Features\t: fp asimd asimddp i8mm bf16\n")
PLAN = Plan(specialists=2, batch=4, context=64, threads=1, precision="float32", keep=True, checkpointing="block", memory=0)


@pytest.fixture
def processor(monkeypatch):
    """Makes this device one whose processor has the recorded instructions."""

    def become(cpuinfo):
        device = replace(detect.detect(), features=detect.features(cpuinfo), gpu=None)
        monkeypatch.setattr(detect, "detect", lambda **_: device)

    return become


def test_plan_shows_every_line_with_a_reason_and_its_neighbours(ready, run):
    shown = json.loads(run("plan", "--json").stdout)
    plan = shown["plan"]
    assert plan["batch"] == 4
    assert plan["context"] == 64
    assert plan["step_seconds"] > 0
    assert set(plan["reasons"]) >= {"specialists", "batch", "context", "threads", "precision", "keep", "checkpointing", "memory"}
    assert [each["specialists"] for each in shown["neighbours"]] == [0, 2]
    assert "with 2 specialists" in run("plan", "--no-measure").stdout


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("colour=red", "a plan has no line 'colour'; its lines are specialists, batch"),
        ("precision=float8", "precision = 'float8' must be one of float32, bfloat16"),
        ("batch=0", "batch = '0' must be a whole number between 1 and 4096"),
        ("keep=maybe", "keep = 'maybe' must be true or false"),
    ],
)
def test_a_line_that_no_plan_has_is_a_sentence(line, sentence):
    with pytest.raises(ComigsError, match=sentence):
        planning.parse([line])


@pytest.mark.parametrize("lines", [["keep=false", "checkpointing=block"], ["checkpointing=attention"], ["precision=bfloat16"]])
def test_every_mode_trains(ready, run, processor, lines):
    processor(WITH_BFLOAT16[0])  # torch computes in bfloat16 without the instructions too, slowly
    flags = [part for line in lines for part in ("--plan", line)]
    trained = json.loads(run("train", "--steps", "4", "--json", *flags).stdout)
    assert trained["finished"]
    assert trained["validation_loss"] < trained["validation_loss_before"]


@pytest.mark.parametrize("cpuinfo", WITHOUT_BFLOAT16)
def test_a_precision_that_the_processor_does_not_have_is_refused_with_the_next_step(ready, run, processor, cpuinfo):
    processor(cpuinfo)
    flags = ("--plan", "precision=bfloat16")
    for command in (("plan",), ("plan", "--no-measure"), ("train", "--steps", "1")):
        words = " ".join(run(*command, *flags, code=1).output.split())
        assert "this processor has no instructions for it; train with: --plan precision=float32" in words
    assert json.loads(run("plan", "--json").stdout)["plan"]["reasons"]["precision"] == "no bfloat16 instructions"


@pytest.mark.parametrize("cpuinfo", WITH_BFLOAT16)
def test_a_precision_that_the_processor_has_is_measured_and_may_be_asked_for(ready, run, processor, cpuinfo):
    processor(cpuinfo)
    assert json.loads(run("plan", "--json").stdout)["rates"]["products"].keys() == {"float32", "bfloat16"}
    shown = run("plan", "--json", "--no-measure", "--plan", "precision=bfloat16").stdout
    assert json.loads(shown)["plan"]["precision"] == "bfloat16"


def test_more_context_than_the_base_was_trained_with_is_refused(ready, run):
    assert json.loads(run("plan", "--json", "--no-measure").stdout)["chat"]["context"] == 512
    result = run("plan", "--plan", "context=1024", code=1)
    assert "context = 1024 is asked for and the base was trained with 512 tokens" in " ".join(result.output.split())


def test_after_planning_settings_and_plan_say_the_same(ready):
    here = homes.locate()
    resolved = planning.resolve(here, here.settings(), lines=["threads=1", "keep=false", "checkpointing=block"])
    train, plan = resolved.settings.train, resolved.plan
    assert (plan.threads, plan.keep, plan.checkpointing) == (1, False, "block")
    assert (train.threads, train.base, train.checkpointing) == (1, "quantised", "block")
    assert (train.batch, train.context, train.precision) == (plan.batch, plan.context, plan.precision)
    assert planning.resolve(here, resolved.settings).settings == resolved.settings


def test_what_earlier_trainings_leave_no_choice_about(ready, run):
    here = homes.locate()
    run("train", "--steps", "2", "--plan", "checkpointing=attention", "--plan", "specialists=2")
    assert not (here.state / "plan.json").exists()  # it has finished

    def lines(resume=None, **flags):
        return planning.fixed_lines(here, here.settings(), flags, resume).lines

    settings = {"batch": 4, "context": 64}
    assert lines() == settings | {"specialists": 2, "blocks": 0, "zero_expert": True}
    assert lines(resume=False) == settings
    planning.remember(here, PLAN)
    assert lines(checkpointing="none")["checkpointing"] == "none"
    assert lines()["threads"] == 1
    with pytest.raises(ComigsError, match=r"ask for precision = bfloat16 where it is float32 in the interrupted training"):
        lines(precision="bfloat16")
    assert lines(resume=False, precision="bfloat16")["precision"] == "bfloat16"


def test_a_plan_says_who_chose_each_line(ready, run):
    def reasons(*flags):
        return json.loads(run("plan", "--no-measure", "--json", *flags).stdout)["plan"]["reasons"]

    assert "as asked for" not in reasons().values()
    assert reasons()["batch"] == "as config.toml says"
    flagged = reasons("--plan", "batch=2", "--plan", "threads=1")
    assert {name for name, why in flagged.items() if why == "as asked for"} == {"batch", "threads"}
    run("train", "--steps", "2")
    assert {name for name, why in reasons().items() if why == "as your model has it"} >= {"specialists", "zero_expert"}
    assert "as asked for" not in reasons().values()
    planning.remember(homes.locate(), PLAN)
    assert {name for name, why in reasons().items() if why == "as the interrupted training began"} >= {"specialists", "threads"}


def test_a_full_disk_is_said_before_anything_is_done(ready, run, monkeypatch):
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    result = run("train", "--steps", "1", code=1)
    assert "training writes up to" in result.output
    assert "make room" in " ".join(result.output.split())


def test_memory_that_is_not_there_is_said_before_anything_is_done(ready, run, monkeypatch):
    little = replace(detect.detect(), memory_available=10**8)
    monkeypatch.setattr(detect, "detect", lambda **_: little)
    result = run("train", "--steps", "1", code=1)
    assert "end other programs, or take a smaller base" in " ".join(result.output.split())


def test_experts_in_the_last_block_are_a_line_of_the_plan(ready, run):
    flags = ("--plan", "blocks=1")
    found = json.loads(run("plan", "--json", *flags).stdout)["plan"]
    assert (found["blocks"], found["cache"], found["reasons"]["blocks"]) == (1, True, "as asked for")
    trained = json.loads(run("train", "--steps", "12", "--json", *flags).stdout)
    assert trained["validation_loss"] < trained["validation_loss_before"]
    here = homes.locate()
    assert not list(here.state.glob("below-*"))  # the training has ended
    assert planning.fixed_lines(here, here.settings(), {}, None).lines["blocks"] == 1
    assert "the last 1" in run("plan", "--no-measure").stdout
    assert json.loads(run("plan", "--json", "--plan", "blocks=2").stdout)["plan"]["blocks"] == 0  # that is all of them
    result = run("train", "--plan", "blocks=3", code=1)
    assert "blocks = 3 and the base has 2" in " ".join(result.output.split())


def test_a_cache_that_is_too_large_is_left_out_and_the_plan_says_so(ready, run):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("[train]\n", "[train]\ncache_mb = 0\n"))
    found = json.loads(run("plan", "--json", "--plan", "blocks=1").stdout)["plan"]
    assert not found["cache"]
    assert "of the disk, and 0.00 GB are for it" in found["reasons"]["cache"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a computer without a CUDA device")
def test_a_gpu_that_torch_does_not_see_is_a_sentence(ready, run):
    assert json.loads(run("plan", "--json").stdout)["plan"]["device"] == "cpu"
    result = run("train", "--steps", "1", "--plan", "device=cuda", code=1)
    assert "sees no CUDA device; install a build of torch with CUDA" in " ".join(result.output.split())


def test_a_gpu_that_was_measured_sets_the_device_and_the_memory(ready, monkeypatch):
    """The readings of a GPU are made up; nothing here runs on one."""
    here = homes.locate()
    settings, device = here.settings(), detect.detect()
    base = planning.sizes(here.base_file, settings)
    products = {"float32": 1e13, "bfloat16": 1e14}
    rates = Rates(products=products, threads=4, device="cuda", gpu_memory=8 * 10**9)

    def make(rates):
        return planning.make(here, settings, profile=settings.device(), device=device, base=base, rates=rates, fixed={})

    plan = make(rates)
    assert (plan.device, plan.precision, plan.checkpointing) == ("cuda", "bfloat16", "none")
    assert plan.memory < 0.7 * 8 * 10**9
    with pytest.raises(ProfileError, match="may be used"):
        make(replace(rates, gpu_memory=10**8))


def test_a_graph_saves_the_start_of_kernels_and_the_plan_says_that_nobody_measured_it(ready):
    here = homes.locate()
    settings, device = here.settings(), detect.detect()
    base = planning.sizes(here.base_file, settings)
    rates = Rates(products={"float32": 1e15}, threads=10**9, device="cuda", gpu_memory=8 * 10**9)

    def make(rates=rates, **fixed):
        return planning.make(here, settings, profile=settings.device(), device=device, base=base, rates=rates, fixed=fixed)

    assert make().step_seconds == pytest.approx(0.0067 * base.num_blocks)
    plan = make(cuda_graph=True)
    assert plan.step_seconds < 1e-3
    assert "not measured here yet" in plan.reasons["step_seconds"]
    measured = make(replace(rates, slower={plan.mode: 3.0}), cuda_graph=True)
    assert measured.step_seconds == pytest.approx(3 * plan.step_seconds)
    assert "step_seconds" not in measured.reasons
    with pytest.raises(ComigsError, match="keep = false leaves the weights in their file; leave it out: --plan cuda_graph=false"):
        make(cuda_graph=True, keep=False)
    for measured in (replace(rates, device="cpu"), None):
        with pytest.raises(ComigsError, match="cuda_graph = true is asked for and training computes on the processor"):
            make(measured, cuda_graph=True)


def test_the_plan_in_a_line_says_what_computes():
    settings = Config(base=BaseConfig("tiny", "sha256", 1000))
    plan = replace(PLAN, threads=6, precision="bfloat16", step_seconds=0.5)
    assert "bfloat16, 6 threads, up to" in summary(plan, settings, 60)
    assert "bfloat16, on the GPU, up to" in summary(replace(plan, device="cuda"), settings, 60)
    # 60 expert steps and the 20 router steps of their two periods, half a second each
    assert "60 steps in about 1 minute" in summary(plan, settings, 60)
    assert "the last 120 of 180 steps in about 1 minute" in summary(plan, settings, 180, Standing(60, 20))
    assert "the last router steps in less than a minute" in summary(plan, settings, 180, Standing(180, 50))
    assert ", at most 60 steps in about 1 minute" in summary(plan, settings, 60, most=True)
    assert ", about 60 steps in about 7 minutes" in summary(plan, settings, 60, minutes=7.0)
    assert ", about 60 steps in about 1 minute" in summary(plan, settings, 60, minutes=0.5)


@pytest.mark.parametrize(("options", "settings"), [([], "passes = 1.0"), (["--steps", 3], "patience = 1")])
def test_a_training_does_the_steps_that_its_plan_names(ready, run, options, settings):
    path = ready / "config.toml"
    path.write_text(path.read_text().replace("[train]\n", f"[train]\n{settings}\n"))
    found = run("train", "--json", *options)
    (steps,) = re.findall(r", (\d+) steps in (?:about \d+ minutes?|less than a minute) ", found.stderr)
    assert json.loads(found.stdout)["expert_steps"] == int(steps)


def test_of_a_training_that_may_end_early_the_plan_names_the_most_steps(ready, run):
    path = ready / "config.toml"
    # 7,076 tokens are 111 rows of 64, which 56 steps of 4 rows read twice
    assert re.search("7,076 training tokens.*about 56 expert steps", run("plan").stdout, re.S)
    path.write_text(path.read_text().replace("[train]\n", "[train]\npatience = 1\nsteps = 9\n"))
    assert "at most 9 expert steps" in run("plan").stdout
    assert ", at most 9 steps in " in run("train").stderr


def test_more_blocks_than_the_base_has_are_refused(tiny_base):
    def blocks(number):
        return plan_experts(ModelConfig(specialists=1, blocks=number), tiny_base.hparams).blocks

    assert [blocks(number) for number in (None, 0, 2, 1)] == [0, 0, 0, 1]
    with pytest.raises(ComigsError, match=r"blocks = 3 and the base has 2; use at most 2, or 0 for all"):
        blocks(3)


ASKING = """
import ctypes, re, sys, llama_cpp
said = []
@llama_cpp.llama_log_callback
def keep(level, text, data): said.append(text.decode())
llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
llama_cpp.Llama(sys.argv[1], n_ctx=64, verbose=False)
print(*re.findall(r"CPU_REPACK model buffer size =\\s*([0-9.]+) MiB", "".join(said)) or ["0"])
"""


@pytest.mark.parametrize(("kind", "tied"), [("Q4_0", True), ("Q4_0", False), ("Q8_0", True), (None, True)])
def test_bytes_that_are_copied_are_those_that_llama_cpp_says(tmp_path, kind, tied):
    path = write_llama(tmp_path / "base.gguf", width=256, ff_width=512, quantised=kind, tied=tied)
    asked = subprocess.run([sys.executable, "-c", ASKING, path], capture_output=True, text=True, check=True).stdout
    features = detect.detect().features
    expected = 0 if "amx" in features else float(asked) * 2**20
    assert planning.repacked_bytes(GGUFFile(path), repacked_formats(features)) == pytest.approx(expected, abs=2**20 * 0.006)


def test_a_chat_leaves_the_slow_cores_alone(ready, tiny_path, monkeypatch):
    monkeypatch.setattr(profiles, "available_cores", lambda: 6)
    settings = homes.locate().settings()
    cores = (detect.Cores("Cortex-A76", 2, 2400), detect.Cores("Cortex-A55", 4, 1800))
    device = replace(detect.detect(), cores=cores)
    plan = planning.chat_plan(settings, tiny_path, profile=settings.device(), device=device, size=1)
    assert (plan.threads, plan.reasons["threads"]) == (2, "the fast cores; 4 slow ones would hold them up")
    all_fast = replace(device, cores=cores[:1] * 3)
    assert planning.chat_plan(settings, tiny_path, profile=settings.device(), device=all_fast, size=1).threads == 6
