"""A LoRA that somebody else trained as the start of a specialist: as llama.cpp applies it, or refused with the reason."""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from comigs_edge.export.folder import newest_adapters
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import read_manifest, versions
from comigs_edge.nn.model import Model
from tests.conftest import divergence, llama_logits

RANK, ALPHA = 4, 12.0
IDS = list(range(5, 60))
SIZES = {"gate": (96, 64), "up": (96, 64), "down": (64, 96)}  # of the tiny base
lora = pytest.mark.parametrize("ready", ["lora"], indirect=True)


def updates(matrices=tuple(SIZES), blocks=(0, 1), rank=RANK):
    """(block, matrix) -> A and B."""
    rng = np.random.default_rng(3)
    return {
        (block, name): (
            rng.standard_normal((rank, SIZES[name][1])).astype(np.float32) * 0.1,
            rng.standard_normal((SIZES[name][0], rank)).astype(np.float32) * 0.1,
        )
        for block in blocks
        for name in matrices
    }  # fmt: skip


def write_gguf(path, pairs, alpha=ALPHA, architecture="llama"):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for (block, name), halves in pairs.items():
        for half, array in zip("ab", halves, strict=True):
            writer.add_tensor(f"blk.{block}.ffn_{name}.weight.lora_{half}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_peft(folder, pairs, **settings):
    """As PEFT saves it."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "base_model_name_or_path": "someone/tiny"}
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    tensors = {
        f"base_model.model.model.layers.{block}.mlp.{name}_proj.lora_{half}.weight": array
        for (block, name), halves in pairs.items()
        for half, array in zip("AB", halves, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def specialist_logits(home, tiny_base):
    """The first specialist alone."""
    adapters, _ = newest_adapters(Home(home), Home(home).settings())
    model = Model(tiny_base, adapters, only=(1,))
    with torch.no_grad():
        return model.logits(model(torch.tensor([IDS])).hidden).double()


@lora
@pytest.mark.parametrize("alpha", [ALPHA, 0.0])  # 0: llama.cpp scales by 1
def test_the_specialist_is_what_llama_cpp_makes_of_base_and_adapter(ready, run, tmp_path, tiny_path, tiny_base, alpha):
    path = write_gguf(tmp_path / "theirs.gguf", updates(), alpha)
    run("models", "import", path)
    theirs = llama_logits(tiny_path, IDS, [path])
    assert divergence(theirs, specialist_logits(ready, tiny_base)) < 1e-5
    assert divergence(llama_logits(tiny_path, IDS), theirs) > 1e-3


@lora
@pytest.mark.parametrize("is_stabilised", [False, True])
def test_a_folder_of_peft_is_the_same_lora_as_its_gguf_file(ready, run, tmp_path, tiny_path, tiny_base, is_stabilised):
    pairs = updates(("gate", "down"), (1,))
    alpha = ALPHA * RANK**0.5 if is_stabilised else ALPHA  # of alpha / rank in the GGUF file
    run("models", "import", write_peft(tmp_path / "theirs", pairs, use_rslora=is_stabilised))
    theirs = llama_logits(tiny_path, IDS, [write_gguf(tmp_path / "theirs.gguf", pairs, alpha)])
    assert divergence(theirs, specialist_logits(ready, tiny_base)) < 1e-5


@lora
def test_training_goes_on_from_what_was_imported_and_leaves_the_rest_as_it_was(ready, run, tmp_path):
    run("train", "--steps", 4)
    before = {path.name: path.read_bytes() for path in (ready / "adapters" / "0001").glob("*.safetensors")}
    result = run("models", "import", write_gguf(tmp_path / "theirs.gguf", updates()))
    assert "specialist 1 starts with theirs.gguf, as version 2" in result.stdout
    after = {path.name: path.read_bytes() for path in (ready / "adapters" / "0002").glob("*.safetensors")}
    assert {name for name in before if before[name] != after[name]} == {"specialist.1.safetensors"}
    assert "starts with theirs.gguf" in run("models", "list").stdout
    assert "version 2" in run("status").stdout
    assert json.loads(run("train", "--steps", 4, "--json").stdout)["finished"]
    run("models", "use", 1)
    assert run("chat", "--prompt", "the hen").stdout


@lora
@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda folder: write_gguf(folder / "a.gguf", updates(rank=16)), "has rank 16 and this home's experts 8"),
        (lambda folder: write_gguf(folder / "a.gguf", {(0, "up"): updates()[0, "down"]}), "belongs to another base"),
        (lambda folder: write_gguf(folder / "a.gguf", updates(blocks=(7,))), "changes block 7, where this home has no experts"),
        (lambda folder: write_peft(folder / "a", updates(), use_dora=True), "is no plain LoRA (use_dora = True)"),
        (lambda folder: write_peft(folder / "a", {}), "holds no update"),
        (lambda folder: folder / "nothing", "does not exist; name a folder as PEFT saves it"),
        (lambda folder: folder, "is no LoRA that PEFT saved"),
    ],
)
def test_what_cannot_be_a_specialist_is_refused_with_the_reason(ready, run, tmp_path, write, reason):
    assert reason in run("models", "import", write(tmp_path), code=1).stderr
    assert versions(ready / "adapters") == []


@lora
def test_a_lora_of_the_attention_is_refused_with_the_reason(ready, run, tmp_path, tiny_path):
    folder = write_peft(tmp_path / "theirs", updates())
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((4, 64), np.float32)},
              folder / "adapter_model.safetensors")  # fmt: skip
    assert "an expert here changes the MLP alone" in run("models", "import", folder, code=1).stderr
    assert "is no LoRA adapter" in run("models", "import", tiny_path, code=1).stderr
    assert (
        "there is no specialist 5"
        in run("models", "import", write_gguf(tmp_path / "a.gguf", updates()), "--specialist", 5, code=1).stderr
    )


def test_beside_parallel_experts_a_lora_is_refused(ready, run, tmp_path):
    assert "a LoRA can start a LoRA expert" in run("models", "import", write_gguf(tmp_path / "a.gguf", updates()), code=1).stderr


@lora
def test_a_version_that_was_imported_has_learned_none_of_the_owners_text(ready, run, tmp_path):
    run("models", "import", write_gguf(tmp_path / "theirs.gguf", updates()))
    assert read_manifest(ready / "adapters", 1)["learned"] == []
