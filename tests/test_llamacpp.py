"""llama.cpp is loaded so that it runs on every processor."""

import ctypes
import subprocess
from types import SimpleNamespace

import llama_cpp
import pytest

from comigs_edge import llamacpp
from profiles.chat import GPU
from tests.docs_commands import ROOT


@pytest.mark.parametrize(("info", "repacks"), [(b"AVX2 = 1 | AMX_INT8 = 1 | OPENMP = 1", False), (b"AVX2 = 1 | NEON = 1", True)])
def test_where_llama_cpp_has_amx_its_weights_are_not_repacked(info, repacks):
    library = SimpleNamespace(
        llama_print_system_info=lambda: info, llama_model_default_params=lambda: SimpleNamespace(use_extra_bufts=True)
    )
    llamacpp.keep_from_amx(library)
    assert library.llama_model_default_params().use_extra_bufts is repacks


def test_the_library_in_use_has_these_defaults():
    has_amx = b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()
    assert llama_cpp.llama_cpp.llama_model_default_params().use_extra_bufts is not has_amx


class Devices:
    """ggml's list of devices, as its C functions give it: (type, description, free bytes), with numbers as pointers."""

    def __init__(self, *devices):
        def memory(device, free, total):
            ctypes.cast(free, ctypes.POINTER(ctypes.c_size_t))[0] = devices[device.value - 1][2]

        for name, call in {
            "count": lambda: len(devices),
            "get": lambda number: number.value + 1,
            "type": lambda device: devices[device.value - 1][0],
            "description": lambda device: devices[device.value - 1][1],
            "memory": memory,
        }.items():
            setattr(self, f"ggml_backend_dev_{name}", call)


CPU, CARD, CARD_2, ORIN = (0, b"EPYC", 9), (1, b"RTX 3060", 12), (1, b"RTX 3090", 24), (2, b"Orin", 5)


@pytest.mark.parametrize(
    ("devices", "found"),
    [
        ((CPU,), None),
        ((CPU, CARD), GPU(name="RTX 3060", free=12, is_shared=False)),
        ((CARD, CPU, CARD_2), GPU(name="RTX 3060 and RTX 3090", free=36, is_shared=False)),
        ((ORIN, CPU), GPU(name="Orin", free=5, is_shared=True)),
        ((ORIN, CARD), GPU(name="RTX 3060", free=12, is_shared=False)),
    ],
)
def test_the_gpus_of_a_device_are_those_that_llama_cpp_would_take(devices, found):
    assert llamacpp.find_gpu(Devices(*devices)) == found


def test_the_library_in_use_finds_a_gpu_where_it_says_that_it_offloads():
    assert (llamacpp.find_gpu() is not None) == llama_cpp.llama_supports_gpu_offload()


def test_make_setup_cuda_builds_for_the_gpu_and_leaves_torch_alone(tmp_path):
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    words = ["make", "--dry-run", "--directory", str(tmp_path), "--print-data-base", "setup", "NVCC=/bin/true"]
    shown = subprocess.run([*words, "CUDA=1"], check=True, capture_output=True, text=True).stdout
    assert "grep -v '^torch==' constraints.txt > .venv/constraints.txt" in shown
    assert "--no-binary llama-cpp-python llama-cpp-python" in shown
    assert "CMAKE_ARGS := -DGGML_CUDA=on" in shown
    plain = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert "--constraint constraints.txt --editable" in plain
