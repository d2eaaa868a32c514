"""Verdicts on devices that are not here."""

import json
from dataclasses import replace

import pytest

from comigs_edge.planning.doctor import Conditions, findings, offload, versions
from profiles.detect import Cores, Device, Power

GOOD = Device(
    model="Raspberry Pi 5 Model B Rev 1.0", cores=(Cores("Cortex-A76", 4, 2400),), features=("neon", "dotprod"),
    memory=8_000_000_000, memory_available=7_000_000_000, memory_limit=None, memory_left=None, disk_kind="NVMe", gpu=None,
    has_unified_memory=False, power_mode=None, temperature=50.0, throttled=(), power=Power(False, True, None),
)  # fmt: skip
QUIET = Conditions(disk_free=20_000_000_000, load=0.2, cores=4)
INSTALLED = {"python": "3.11.7", "torch": "2.13.0", "llama-cpp-python": "0.3.36", "numpy": "2.4.6"}


def verdicts(device=GOOD, here=QUIET, installed=INSTALLED):
    return {each.subject: each for each in findings(device, here, installed)}


def test_a_good_device_has_nothing_to_mend():
    assert {each.verdict for each in verdicts().values()} == {"good"}


@pytest.mark.parametrize(
    ("subject", "verdict", "change", "text", "mend"),
    [
        ("memory", "bad", {"memory_available": 300_000_000}, "0.3 GB of 8.0 GB", "end other programs"),
        (
            "memory",
            "poor",
            {"memory_limit": 2_000_000_000, "memory_left": 600_000_000},
            "0.6 GB of 8.0 GB can be used, limited by the container",
            "end other programs",
        ),
        ("disk", "note", {"disk_kind": "SD"}, "which wears", ""),
        ("heat", "poor", {"temperature": 86.0}, "86 °C", "fan"),
        ("heat", "note", {"temperature": 78.0}, "it will slow down", ""),
        ("heat", "poor", {"throttled": ("too little voltage now", "throttled now")}, "held back", "power supply"),
        ("heat", "note", {"throttled": ("throttled earlier",)}, "since it was started", ""),
        ("processor", "note", {"features": ("neon",)}, "no dot product", ""),
        ("power", "poor", {"power": Power(True, False, 12)}, "on battery, 12 %", "plug it in"),
        ("power", "note", {"power": Power(True, False, 80)}, "on battery, 80 %", ""),
    ],
)
def test_each_problem_of_a_device_has_a_verdict_and_a_mend(subject, verdict, change, text, mend):
    found = verdicts(replace(GOOD, **change))[subject]
    assert (found.verdict, text in found.text, mend in found.mend) == (verdict, True, True)
    assert bool(found.mend) == (verdict in ("poor", "bad"))


def test_a_busy_machine_a_full_disk_and_a_missing_package_are_named():
    found = verdicts(here=Conditions(100_000_000, 3.9, 4), installed=INSTALLED | {"torch": None})
    assert (found["processor"].verdict, found["disk"].verdict, found["packages"].verdict) == ("poor", "bad", "bad")
    assert found["packages"].mend == "pip install torch"


@pytest.mark.parametrize(
    ("offload", "verdict", "mend"),
    [
        ("used", "good", ""),
        ("not found", "poor", "install NVIDIA's driver"),
        ("built without CUDA", "poor", "rebuild with: CMAKE_ARGS=-DGGML_CUDA=on CUDACXX=/usr/local/cuda/bin/nvcc pip install"),
    ],
)
def test_a_gpu_that_llama_cpp_cannot_use_comes_with_the_command_that_rebuilds_it(offload, verdict, mend):
    found = verdicts(replace(GOOD, gpu="integrated (Tegra)"), replace(QUIET, offload=offload))["GPU"]
    assert (found.verdict, found.mend.startswith(mend), bool(found.mend)) == (verdict, True, bool(mend))
    assert "llama-cpp-python==0.3.36" in found.mend or offload != "built without CUDA"


def test_a_device_without_a_gpu_does_not_load_llama_cpp():
    assert offload(GOOD) is None
    assert offload(replace(GOOD, gpu="integrated (Tegra)")) in ("used", "not found", "built without CUDA")


def test_the_versions_are_those_that_are_installed():
    assert None not in versions().values()


def test_the_command_prints_findings_and_json(run, home):
    found = json.loads(run("doctor", "--json", code=None).stdout)
    assert {each["subject"] for each in found["findings"]} >= {"packages", "processor", "memory", "disk", "heat"}
    assert found["device"]["memory"] > 0
    shown = run("doctor", code=None).stdout
    assert "memory" in shown
    assert "next: comigs-edge init" in shown
